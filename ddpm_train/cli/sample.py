"""`ddpm-sample`: images, and pictures of how they come about, from a trained model."""

from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.sample import SampleConfig
from ddpm_train.sampling.preflight import PROGRAM
from ddpm_train.system import launch


def main() -> None:
    app.main(PROGRAM, job)


def job(config: SampleConfig, values: dict[str, Any]) -> None:
    launch.spread()
    # torch and diffusers take seconds to import; a typo must not wait for them.
    from ddpm_train.sampling.sample import sample_images
    from ddpm_train.system.shutdown import ends_by_exit_code

    with ends_by_exit_code(again="the same command makes what is missing"):
        sample_images(config)


if __name__ == "__main__":
    main()
