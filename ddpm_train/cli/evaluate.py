"""`ddpm-evaluate`: how good a model is, or a folder of images."""

from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.evaluation.preflight import PROGRAM
from ddpm_train.system import launch


def main() -> None:
    app.main(PROGRAM, job)


def job(config: EvaluateConfig, values: dict[str, Any]) -> None:
    launch.spread()
    # torch and diffusers take seconds to import; a typo must not wait for them.
    from ddpm_train.evaluation.evaluate import evaluate
    from ddpm_train.system.shutdown import ends_by_exit_code

    with ends_by_exit_code(again="the same command starts again; the features of real images are kept") as stop:
        evaluate(config, stop)


if __name__ == "__main__":
    main()
