"""With which code a program ends, for schedulers."""

import os
from pathlib import Path
from typing import NoReturn

MISTAKE = 2  # in the command or the data; nothing was changed
NON_FINITE = 3  # the loss or gradient is not a number; nothing of it was saved
NOT_SAVED = 4  # checkpoints cannot be written
INTERRUPTED = 130  # by a second Ctrl-C, as a shell has it: nothing was saved
REQUEUE = 75  # asked to stop, and saved: EX_TEMPFAIL of sysexits.h, "try again later"

# Names the file that a job's main process leaves its exit code in: `accelerate launch` puts its own 1 in its place.
FILE_VARIABLE = "DDPM_TRAIN_EXIT_CODE_FILE"


def is_first_process() -> bool:
    """Whether this is the one that alone writes, and speaks."""
    return os.environ.get("RANK", "0") == "0"


def note(code: object) -> None:
    """Leave the exit code where the sweep that started this program looks for it. What is no number means 0 or 1."""
    if FILE_VARIABLE in os.environ and is_first_process():
        number = code if isinstance(code, int) else int(code is not None)
        Path(os.environ[FILE_VARIABLE]).write_text(f"{number}\n")


def leave(code: int) -> NoReturn:
    """End this process now, whatever its threads do."""
    note(code)
    os._exit(code)


class CannotGoOn(Exception):
    """A run has ended without success; the text says why, and how to go on."""

    exit_code = 1  # of its program
    everywhere = True  # whether all processes raise it together
