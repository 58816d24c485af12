"""Tables beside images, as the `datasets` library reads them: it takes only the images that they name."""

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import parse_json
from ddpm_train.config.text import printable
from ddpm_train.system.console import counted


def unnamed_images(root: Path, tables: list[str], images: list[str]) -> str | None:
    """A line if the tables name some of the images and not all; all are used.

    Args:
        tables: `metadata.csv` and `metadata.jsonl` files, relative to `root`, as the images are.
    """
    named: set[str] = set()
    for table in tables:
        # What is damaged or no such table names nothing; a pipe would be waited for.
        with suppress(OSError, ValueError, csv.Error):
            if os.path.isfile(root / table):
                named |= set(_named(root, table))
    count = sum(image in named for image in images)
    if not named or count == len(images):
        return None
    names = f"{printable(tables[0])} names" if len(tables) == 1 else f"{len(tables)} metadata files name"
    return f"{names} {count:,} of {counted(len(images), 'image')}; all are used (dataset=hub uses only those)"


def _named(root: Path, table: str) -> Iterator[str]:
    for row in _rows(root / table):
        for column, file in row.items():
            if (column == "file_name" or str(column).endswith("_file_name")) and isinstance(file, str):
                yield os.path.normpath(os.path.join(os.path.dirname(table), file))


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (parse_json(line, dict[str, Any], str(table)) for line in file if line.strip())
