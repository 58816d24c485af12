"""With which code a program ends, for schedulers."""

MISTAKE = 2  # in the command or the data; nothing was changed
NON_FINITE = 3  # the loss or gradient is not a number; nothing of it was saved
NOT_SAVED = 4  # checkpoints cannot be written
REQUEUE = 75  # asked to stop, and saved: EX_TEMPFAIL of sysexits.h, "try again later"

# Names the file that a job's main process leaves its exit code in: `accelerate launch` puts its own 1 in its place.
FILE_VARIABLE = "DDPM_TRAIN_EXIT_CODE_FILE"


class CannotGoOn(Exception):
    """A run has ended without success; the text says why, and how to go on."""

    exit_code = 1  # of its program
    everywhere = True  # whether all processes raise it together
