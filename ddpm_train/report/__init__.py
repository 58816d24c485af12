"""`report.html`: one page on how good a model is, from what is in its folder. Imports no torch."""

from collections.abc import Callable
from pathlib import Path

from ddpm_train.runs.folder import CONFIG, EVALUATION, REPORT
from ddpm_train.system.files import write_atomic


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder, or into another that an evaluation has filled; returns its path.

    Args:
        folder: the run's, or the one in it that its evaluations are in.

    Raises:
        OSError: the folder cannot be read or written.
    """
    from ddpm_train.report.evidence import read_folder
    from ddpm_train.report.page import render  # which takes a second to import, for the charts

    if folder.name == EVALUATION and (folder.parent / CONFIG).is_file():
        folder = folder.parent
    path = folder / REPORT
    write_atomic(path, render(read_folder(folder)).encode())
    return path


def try_to_write_report(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """`write_report` at the end of work that must not fail for it: an error becomes a warning."""
    try:
        return write_report(folder)
    except Exception as error:
        warn(f"ERROR: the report in {folder} cannot be written: {error!r}")
        return None
