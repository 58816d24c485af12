"""What the programs share: from the command line to the program's job, and every mistake told on the way."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ddpm_train.cli import flags, show
from ddpm_train.cli.flags import Arguments
from ddpm_train.config.mistakes import Mistakes, without_tokens
from ddpm_train.config.program import Program, compose_configs
from ddpm_train.system import exit_codes, launch
from ddpm_train.system.signals import handle_signals

C = TypeVar("C")


def main(
    program: Program[C], job: Callable[[C, dict[str, Any]], None], sweep: Callable[[Arguments], None] | None = None
) -> None:
    """Do what the command line asks of a program.

    Args:
        job: takes the config, and the same as plain values to be saved with the run.
        sweep: does a sweep; None: its jobs run one after the other in this process.
    """
    # Until `StopRequest` takes over, after seconds of imports, there is nothing to save.
    handle_signals(lambda *_: exit_codes.leave(exit_codes.REQUEUE))
    launch.follow_launchers()
    try:
        try:
            arguments = flags.read(sys.argv[1:], program, sweeps_itself=sweep is not None)
            if arguments.help or arguments.cfg:
                show.show(program, arguments)
            elif arguments.multirun and sweep:
                sweep(arguments)
            else:
                for config, values in compose_configs(
                    program,
                    arguments.overrides,
                    name=arguments.config_name,
                    path=arguments.config_path,
                    config_dir=arguments.config_dir,
                    multirun=arguments.multirun,
                ):
                    job(config, values)
        except Mistakes as mistakes:
            tell(mistakes)
    except SystemExit as left:
        exit_codes.note(left.code)
        raise


def tell(mistakes: Mistakes) -> NoReturn:
    """Print the mistakes once, whatever the number of processes, and leave with code 2."""
    if exit_codes.is_first_process():
        for line in mistakes.lines:
            print(f"error: {without_tokens(line)}", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)
