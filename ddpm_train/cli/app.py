"""What the programs share: they read the command line, print every mistake, and start the program's job."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, TypeVar, cast

from ddpm_train.cli import flags, show
from ddpm_train.cli.flags import Arguments
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.program import Program, compose_configs
from ddpm_train.system import exit_codes, launch
from ddpm_train.system.failures import disk_remedy, imported_in_vain, is_refused_by_disk, one_line
from ddpm_train.system.output import forgiving, take_every_character
from ddpm_train.system.signals import Stopped, StopRequest, handle_signals
from ddpm_train.system.threads import wait_briefly

C = TypeVar("C")
T = TypeVar("T")

# Charts go into files: what a notebook names for the programs that it starts is often not installed with them, and then
# matplotlib cannot be imported. By the others diffusers does without torch or without safetensors.
_MEANT_FOR_OTHERS = ("MPLBACKEND", "USE_TORCH", "USE_TF", "USE_SAFETENSORS")


def main(
    program: Program[C],
    job: Callable[[C, dict[str, Any]], None],
    sweep: Callable[[Arguments], None] | None = None,
    *,
    plan: Callable[[C], None] | None = None,
    alone: bool = False,
) -> None:
    """Do what the command line asks of a program.

    Args:
        job: takes the config, and the same as plain values to be saved with the run.
        sweep: does a sweep; None: its jobs run one after the other in this process.
        plan: prints what a run would take.
        alone: the program has but one process, wherever it is started.
    """
    take_every_character()
    for name in _MEANT_FOR_OTHERS:
        os.environ.pop(name, None)
    sys.stderr = forgiving(sys.stderr)
    wait_briefly()
    # Until `StopRequest` takes over, after seconds of imports, there is nothing to save.
    handle_signals(lambda *_: exit_codes.leave(exit_codes.REQUEUE))

    try:
        try:
            arguments = flags.read(sys.argv[1:], program, sweeps_itself=sweep is not None, plans=plan is not None)
            if arguments.help or arguments.cfg:
                with printing():
                    show.show(program, arguments)
            elif arguments.plan and plan is not None:
                with printing():
                    _plan(program, plan, arguments)
            else:
                sys.stdout = forgiving(sys.stdout)
                _work(program, job, sweep, arguments, alone)
        except Mistakes as mistakes:
            tell(mistakes, everyone=alone)
        except Exception as error:
            _end_if_disk_is_full(error)
            if line := imported_in_vain(error):
                remedy = "correct what it reads from the environment, or install it anew"
                tell(Mistakes(f"{line}; {remedy}"), everyone=alone)
            raise
    except SystemExit as left:
        exit_codes.note(left.code)
        raise


def _plan(program: Program[C], plan: Callable[[C], None], arguments: Arguments) -> None:
    # What images that must be loaded first would decide is left as it is.
    _check_launch()
    program = replace(program, settle=lambda config, values, overrides: values)
    ((config, _),) = compose_configs(
        program,
        arguments.overrides,
        name=arguments.config_name,
        path=arguments.config_path,
        config_dir=arguments.config_dir,
    )
    if exit_codes.is_first_process():
        plan(config)


def _check_launch() -> None:
    """Every process tells what does not fit in its variables, which say which one is the first."""
    if unfit := list(launch.variable_mistakes()):
        tell(Mistakes(*unfit), everyone=True)


def _work(
    program: Program[C],
    job: Callable[[C, dict[str, Any]], None],
    sweep: Callable[[Arguments], None] | None,
    arguments: Arguments,
    alone: bool,
) -> None:
    def compose() -> list[tuple[C, dict[str, Any]]]:
        configs = compose_configs(
            program,
            arguments.overrides,
            name=arguments.config_name,
            path=arguments.config_path,
            config_dir=arguments.config_dir,
            multirun=arguments.multirun,
            before_trial=lambda: None if alone else _say_what_loads(),
        )
        launch.follow_launchers()
        return configs

    if not alone:
        _check_launch()
    if arguments.multirun and sweep:
        sweep(arguments)
        return
    together = launch.is_one_of_several() and not alone
    for config, values in _everywhere(compose) if together else compose():
        job(config, values)


def _say_what_loads() -> None:
    """The first words, before seconds without any."""
    if exit_codes.is_first_process() and not launch.hands_over() and "torch" not in sys.modules:
        print("loading torch and diffusers …", flush=True)


def _end_if_disk_is_full(error: Exception) -> None:
    if is_refused_by_disk(error):
        remedy = f"{disk_remedy(error)}, then give the same command again"
        print(f"error: {one_line(error)}. {remedy}", file=sys.stderr)
        sys.exit(exit_codes.NOT_SAVED)


def _everywhere(compose: Callable[[], T]) -> T:
    """A mistake on one machine alone must end the processes on all of them; they meet for it, which takes torch."""
    composed, found = None, Mistakes()
    try:
        composed = compose()
    except Mistakes as mistakes:
        found = mistakes
    if unable_to_meet := list(launch.launch_mistakes()):
        tell(Mistakes(*dict.fromkeys([*found.lines, *unable_to_meet])), everywhere=False)
    from ddpm_train.system import ranks

    def outcome() -> T | None:
        if found.lines:
            raise found
        return composed

    try:
        with StopRequest(lambda signal_name: exit_codes.leave(exit_codes.REQUEUE)):
            return cast(T, ranks.everywhere(outcome))
    except Mistakes:
        ranks.leave()
        raise
    except Stopped:
        exit_codes.leave(exit_codes.REQUEUE)


@contextmanager
def printing() -> Iterator[None]:
    """For output that another program reads: if it cannot be written, that is an error."""
    try:
        yield
        print(end="", flush=True)
    except OSError as error:
        sys.stdout = forgiving(sys.stdout)  # Python tries once more at its end
        if isinstance(error, BrokenPipeError):  # as `| head` leaves, with what it wanted
            sys.exit(1)
        _end_if_disk_is_full(error)
        raise


def tell(mistakes: Mistakes, *, everywhere: bool = True, everyone: bool = False) -> NoReturn:
    """Print the mistakes once, or once on each machine that has them, or by everyone, and leave with code 2."""
    first_here = not everywhere and os.environ.get("LOCAL_RANK") == "0"
    if everyone or first_here or exit_codes.is_first_process():
        for line in mistakes.lines:
            print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_codes.MISTAKE)
