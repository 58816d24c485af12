"""All jobs of a sweep's folder compared, best first: a table, `sweep.csv`, a picture, TensorBoard's HParams."""

import csv
import io
import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from ddpm_train.cli.sweeps.jobs import Row, objective_of, read_record, varied_keys
from ddpm_train.config.objective import Criterion
from ddpm_train.config.text import shown
from ddpm_train.runs.folder import JOB, SWEEP_PICTURE, SWEEP_TABLE, TENSORBOARD, read_result
from ddpm_train.system.files import write_atomic


def summarize(folder: Path, jobs: Iterable[Path], criterion: Criterion | None) -> None:
    """Compare the given jobs, and those of earlier commands in the sweep's folder.

    Args:
        criterion: jobs that were judged by anything else are listed without a number.
    """
    known = dict.fromkeys([*jobs, *(path.parent for path in sorted(folder.glob(f"*/{JOB}")))])
    rows = [row for path in known if (row := _row(path, criterion))]
    if not rows:
        return
    sign = -1 if criterion and not criterion.lower_is_better else 1
    rows.sort(key=lambda row: (math.isnan(row.objective), sign * row.objective))
    folder.mkdir(parents=True, exist_ok=True)
    name = criterion.name if criterion else "objective"
    header, cells = _cells(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    write_atomic(folder / SWEEP_TABLE, text.getvalue().encode())
    print("\n".join(map(shown, _table([name, *header[1:]], [_shown(line) for line in cells]))))
    from ddpm_train.cli.sweeps.hparams import write_hparams  # TensorBoard takes a second to import

    write_hparams(folder / TENSORBOARD, rows, name)
    print(f"  table      {folder / SWEEP_TABLE}")
    from ddpm_train.cli.sweeps.picture import sweep_png  # likewise

    write_atomic(folder / SWEEP_PICTURE, sweep_png(rows, name))
    print(f"  picture    {folder / SWEEP_PICTURE}")
    print(f"  compare    tensorboard --logdir {shlex.quote(str(folder / TENSORBOARD))}   (HParams)", flush=True)


def _row(folder: Path, criterion: Criterion | None) -> Row | None:
    record, result = read_record(folder), read_result(folder)
    if record is None:
        return None
    if result is None or criterion is None or result["objective"] != criterion.name:
        return Row(folder, record, math.nan, None)
    return Row(folder, record, objective_of(folder), result["best_step"])


def _cells(rows: list[Row]) -> tuple[list[str], list[list[object]]]:
    keys = varied_keys(rows)
    header = ["objective", "best_step", "status", "seconds", *keys, "folder"]
    cells: list[list[object]] = []
    for row in rows:
        objective = "" if math.isnan(row.objective) else row.objective
        choices = [row.record.choices.get(key, "") for key in keys]
        cells.append([objective, row.best_step, row.record.status, row.record.seconds, *choices, row.folder])
    return header, cells


def _shown(line: list[object]) -> list[str]:
    """A line of the table for a person."""
    return [f"{cell:.4g}" if isinstance(cell, float) else "-" if cell in ("", None) else str(cell) for cell in line]


def _table(header: list[str], lines: list[list[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in [header, *lines]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
