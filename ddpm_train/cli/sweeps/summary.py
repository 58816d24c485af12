"""All jobs of a sweep's folder compared, best first: a table, `sweep.csv`, a picture, TensorBoard's HParams."""

import csv
import io
import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from ddpm_train.cli.sweeps.jobs import Row, length_of, objective_of, read_record, varied_keys
from ddpm_train.config.naming import folder_name
from ddpm_train.config.objective import Criterion
from ddpm_train.config.text import shown
from ddpm_train.runs.folder import JOB, SWEEP_PICTURE, SWEEP_TABLE, TENSORBOARD, read_result
from ddpm_train.system.columns import columns
from ddpm_train.system.console import counted
from ddpm_train.system.files import write_atomic


def summarize(folder: Path, jobs: Iterable[Path], criterion: Criterion | None) -> None:
    """Compare the given jobs, and those of earlier commands in the sweep's folder.

    Args:
        criterion: jobs that were judged by anything else are listed without a number.
    """
    asked = dict.fromkeys(jobs)
    known = asked | dict.fromkeys(path.parent for path in sorted(folder.glob(f"*/{JOB}")))
    rows = [row for path in known if (row := _row(path, criterion))]
    if not rows:
        return
    sign = -1 if criterion and not criterion.lower_is_better else 1
    # A run that was given more steps would be better for that alone.
    lengths = {row.length for row in rows if row.folder in asked}
    others = [row for row in rows if row.length and row.length not in lengths]
    rows.sort(key=lambda row: (row in others, math.isnan(row.objective), sign * row.objective))
    compared = [row for row in rows if row not in others]
    folder.mkdir(parents=True, exist_ok=True)
    name = criterion.name if criterion else "objective"
    header, cells = _cells(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    write_atomic(folder / SWEEP_TABLE, text.getvalue().encode())
    print("\n".join(map(shown, columns(_for_a_person(rows, name)))))
    if others:
        of_them = counted(len(others), "run")
        print(
            f"  the last {of_them} in the table: of another length than this command's, and not compared with the "
            "others"
        )
    from ddpm_train.cli.sweeps.hparams import write_hparams  # TensorBoard takes a second to import

    write_hparams(folder / TENSORBOARD, compared, name)
    print(f"  table      {folder / SWEEP_TABLE}")
    from ddpm_train.cli.sweeps.picture import sweep_png  # likewise

    write_atomic(folder / SWEEP_PICTURE, sweep_png(compared, name))
    print(f"  picture    {folder / SWEEP_PICTURE}")
    print(f"  compare    tensorboard --logdir {shlex.quote(str(folder / TENSORBOARD))}   (HParams)", flush=True)


def _row(folder: Path, criterion: Criterion | None) -> Row | None:
    record, result = read_record(folder), read_result(folder)
    if record is None:
        return None
    if result is None or criterion is None or result["objective"] != criterion.name:
        return Row(folder, record, math.nan, None, length_of(folder))
    return Row(folder, record, objective_of(folder), result["best_step"], length_of(folder))


def _cells(rows: list[Row]) -> tuple[list[str], list[list[object]]]:
    keys = varied_keys(rows)
    header = ["objective", "best_step", "steps", "status", "seconds", *keys, "folder"]
    cells: list[list[object]] = []
    for row in rows:
        objective = "" if math.isnan(row.objective) else row.objective
        choices = [row.record.choices.get(key, "") for key in keys]
        progress = [row.best_step, row.length, row.record.status, row.record.seconds]
        cells.append([objective, *progress, *choices, row.folder])
    return header, cells


def _for_a_person(rows: list[Row], objective: str) -> list[list[str]]:
    """The table without what is the same for all, or can be seen from the rest."""
    header, lines = _cells(rows)
    last = [key.rpartition(".")[2] for key in header]
    short = [name if last.count(name) == 1 else key for name, key in zip(last, header, strict=True)]
    unneeded = {"folder"} if all(row.folder.name == folder_name(row.record.choices) for row in rows) else set[str]()
    if len({row.length for row in rows}) == 1:
        unneeded.add("steps")
    table = [[objective, *short[1:]], *([_shown(cell) for cell in line] for line in lines)]
    return [[cell for cell, key in zip(line, header, strict=True) if key not in unneeded] for line in table]


def _shown(cell: object) -> str:
    if isinstance(cell, Path):
        return cell.name
    return f"{cell:.4g}" if isinstance(cell, float) else "-" if cell in ("", None) else str(cell)
