"""How a program ends: asked to stop, unable to go on, or with an error on one of many processes."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import diffusers

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.text import shown
from ddpm_train.system import exit_codes, launch, ranks
from ddpm_train.system.exit_codes import CannotGoOn
from ddpm_train.system.failures import disk_remedy, is_refused_by_disk, one_line
from ddpm_train.system.signals import Stopped, StopRequest


@contextmanager
def ends_by_exit_code(*, again: str) -> Iterator[StopRequest]:
    """Do a program's work, and leave with the exit code that its end means.

    Args:
        again: what the same command does after a stop.
    """
    diffusers.logging.set_verbosity_error()
    said = not exit_codes.is_first_process()

    def say(signal_name: str) -> None:
        nonlocal said
        if not said:
            said = True
            print(f"stopped ({signal_name}); {again}", flush=True)

    def answer(line: str) -> None:
        if not said:
            print(line, flush=True)

    def leave(signal_name: str) -> None:
        say(signal_name)
        exit_codes.leave(exit_codes.REQUEUE)

    try:
        with StopRequest(leave, answer) as stop:
            yield stop
    except Stopped as stopped:
        say(str(stopped))
        sys.exit(exit_codes.REQUEUE)
    except Mistakes:
        raise
    except CannotGoOn as error:
        _end(str(error), error.exit_code, error.everywhere)
    except Exception as error:
        if is_refused_by_disk(error):
            line = f"{one_line(error)}. {disk_remedy(error)}, or choose another folder; {again}"
            _end(line, exit_codes.NOT_SAVED, ranks.is_everywhere(error))
        if (
            launch.is_one_of_several()
        ):  # the others notice at their next exchange; this process would wait for them to end with it
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise
    finally:
        ranks.leave()


def _end(line: str, code: int, everywhere: bool) -> NoReturn:
    """Leave with an error that the others have, too (`everywhere`), or that this process is alone with."""
    if exit_codes.is_first_process() or not everywhere:
        print(f"error: {shown(line)}", file=sys.stderr, flush=True)
    if launch.is_one_of_several() and not everywhere:
        os._exit(code)
    sys.exit(code)
