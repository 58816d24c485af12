"""What the programs share: from the command line to the program's job, and every mistake told on the way."""

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ddpm_train.cli import flags, show
from ddpm_train.cli.command import Command
from ddpm_train.cli.flags import Arguments
from ddpm_train.cli.sweeps.mistakes import same_folder_mistakes
from ddpm_train.config.compose import open_configs
from ddpm_train.config.extensions import import_extensions
from ddpm_train.config.mistakes import Mistakes, without_tokens
from ddpm_train.config.overrides import choice_mistakes, discrete, parse_overrides
from ddpm_train.config.program import check_jobs, compose_config
from ddpm_train.system import exit_codes

C = TypeVar("C")


def main(command: Command[Any]) -> None:
    """Do what the command line asks of a program."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        # Until `StopRequest` takes over, after seconds of imports, there is nothing to save.
        signal.signal(number, lambda *_: os._exit(exit_codes.REQUEUE))
    try:
        try:
            _run(command, flags.read(sys.argv[1:], command))
        except Mistakes as mistakes:
            tell(mistakes)
    except SystemExit as left:
        if exit_codes.FILE_VARIABLE in os.environ and _is_first():
            Path(os.environ[exit_codes.FILE_VARIABLE]).write_text(str(left.code))
        raise


def tell(mistakes: Mistakes) -> NoReturn:
    """Print the mistakes once, whatever the number of processes, and leave with code 2."""
    if _is_first():
        for line in mistakes.lines:
            print(f"error: {without_tokens(line)}", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _run(command: Command[C], arguments: Arguments) -> None:
    if arguments.help or arguments.cfg or arguments.info or arguments.shell_completion:
        show.show(command, arguments)
    elif not arguments.multirun:
        config, values = compose_config(
            command.program,
            arguments.overrides,
            name=arguments.config_name,
            path=arguments.config_path,
            config_dir=arguments.config_dir,
        )
        command.job(config, values)
    elif command.sweeps is None:
        for config, values in _several(command, arguments):
            command.job(config, values)
    else:
        from ddpm_train.cli.sweeps import plan  # which no other command needs

        plan.sweep(command, command.sweeps, arguments)


def _several(command: Command[C], arguments: Arguments) -> Sequence[tuple[C, dict[str, Any]]]:
    """The configs of a sweep whose jobs run one after the other in this process.

    Raises:
        Mistakes: a line for each in any of them.
    """
    parsed, lines = parse_overrides(arguments.overrides)
    import_extensions(parsed, arguments.config_dir)
    lines += choice_mistakes(parsed, multirun=True)
    jobs = list(itertools.product(*map(discrete, parsed)))
    with open_configs(arguments.config_path, arguments.config_dir):
        checked, further = check_jobs(command.program, arguments.config_name, jobs)
    lines += [*further, *same_folder_mistakes(command, jobs, [job.values for job in checked])]
    configs = [(job.config, job.values) for job in checked if job.config is not None]
    if lines or len(configs) < len(jobs):
        raise Mistakes(*dict.fromkeys(lines))
    return configs
