"""`ddpm-refine`: better samples from a trained model, without training it again."""

from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.refine import RefineConfig
from ddpm_train.evaluation.refine_preflight import PROGRAM
from ddpm_train.system.console import Console


def main() -> None:
    app.main(PROGRAM, job, alone=True)


def job(config: RefineConfig, values: dict[str, Any]) -> None:
    Console(enabled=True).say("loading torch and diffusers …")
    # They take seconds to import; a typo must not wait for them.
    from ddpm_train.evaluation.refine import refine
    from ddpm_train.system.shutdown import ends_by_exit_code

    with ends_by_exit_code(again="the same command goes on with the stage that it was in") as stop:
        refine(config, stop)


if __name__ == "__main__":
    main()
