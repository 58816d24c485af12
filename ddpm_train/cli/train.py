"""`ddpm-train`, and `train.py` in a checkout: trains the run that the config describes."""

import sys
from typing import Any

from ddpm_train.cli import app
from ddpm_train.cli.flags import Arguments
from ddpm_train.config.train import Config
from ddpm_train.system import launch
from ddpm_train.training.preflight import PROGRAM


def main() -> None:
    app.main(PROGRAM, job, sweep, plan=foresee)


def job(config: Config, values: dict[str, Any]) -> None:
    launch.spread()
    # torch and diffusers take seconds to import; a typo must not wait for them.
    from ddpm_train.system.shutdown import ends_by_exit_code
    from ddpm_train.training.train import train_run

    with ends_by_exit_code(again="the same command continues") as stop:
        train_run(config, values, arguments=sys.argv[1:], stop=stop)


def foresee(config: Config) -> None:
    from ddpm_train.system.console import Console
    from ddpm_train.training.plan import say_plan

    say_plan(config, Console(enabled=True))


def sweep(arguments: Arguments) -> None:
    from ddpm_train.cli.sweeps import plan  # which a single run does not need

    plan.sweep(arguments)


if __name__ == "__main__":
    main()
