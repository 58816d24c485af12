"""`ddpm-train`, and `train.py` in a checkout: trains the run that the config describes."""

import sys
from typing import Any

from ddpm_train.cli import app
from ddpm_train.cli.command import Command, Sweeps
from ddpm_train.config.objective import criterion
from ddpm_train.config.train import Config
from ddpm_train.system import launch
from ddpm_train.training.preflight import PROGRAM, preflight


def main() -> None:
    sweeps = Sweeps("ddpm_train.cli.train", preflight, criterion)
    app.main(Command("ddpm-train", PROGRAM, "output_dir", "name='{}'", job, sweeps))


def job(config: Config, values: dict[str, Any]) -> None:
    launch.spread()
    # torch and diffusers take seconds to import; a typo must not wait for them.
    from ddpm_train.system.shutdown import ends_by_exit_code
    from ddpm_train.training.train import train_run

    with ends_by_exit_code(again="the same command continues") as stop:
        train_run(config, values, arguments=sys.argv[1:], stop=stop)


if __name__ == "__main__":
    main()
