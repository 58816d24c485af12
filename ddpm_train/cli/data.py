"""`ddpm-data`: prints what a dataset holds, before anything is trained on it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.data import DATA, DataConfig
from ddpm_train.config.dataset import Dataset
from ddpm_train.config.naming import named_after_images
from ddpm_train.config.program import Program
from ddpm_train.data.paths import path_mistakes, unused_mistakes
from ddpm_train.runs.folder import REPORT
from ddpm_train.system import exit_codes
from ddpm_train.system.console import Console
from ddpm_train.system.files import expanded, output_mistakes, write_atomic
from ddpm_train.system.signals import handle_signals
from ddpm_train.training.choices import resolve, settle

FACTS = "data.json"


def main() -> None:
    app.main(PROGRAM, job, alone=True)


def preflight(config: DataConfig) -> Iterator[str]:
    """What is wrong with this config on this machine, a line each. Imports no torch."""
    if config.dataset is None:
        return
    yield from path_mistakes(config.dataset)
    yield from unused_mistakes(config.dataset)
    output = output_folder(config)
    if _lies_in(output, config.dataset):
        yield (
            f"output={output}: lies in dataset.path={config.dataset.path}, where nothing is written; "
            "choose an output elsewhere"
        )
    yield from output_mistakes("output", str(output))


def job(config: DataConfig, values: dict[str, Any]) -> None:
    console = Console(enabled=True)
    console.say("loading torch, then looking at every image …")
    # torch and matplotlib take seconds to import; a typo must not wait for them.
    from ddpm_train.data.overview import look_at
    from ddpm_train.report.dataset import render, rows

    assert config.dataset is not None
    handle_signals(lambda *_: sys.exit(exit_codes.REQUEUE))  # which ends the workers that prepare images, too
    overview = look_at(config.dataset, progress=console.live)
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FACTS, (json.dumps(asdict(overview.facts), indent=2) + "\n").encode())
    write_atomic(folder / REPORT, render(overview).encode())
    advice = [("advice", f"{each.text} {each.keys}".rstrip()) for each in overview.facts.advice]
    for name, value in (*rows(overview.facts), *advice, ("page", str(folder / REPORT))):
        console.table({name: value})  # of several lines of one name, each


def output_folder(config: DataConfig) -> Path:
    """Where the page and the JSON are written; of a config with a dataset."""
    assert config.dataset is not None  # `cross_field_mistakes`
    if config.output is not None:
        return Path(config.output)
    name = named_after_images(config.dataset.path)
    # Many a dataset is itself the folder of that name, or the one above it.
    return Path(f"about_{name}" if _lies_in(Path("data", name), config.dataset) else f"data/{name}")


def _lies_in(folder: Path, dataset: Dataset) -> bool:
    path = expanded(dataset.path)
    return dataset.source != "embedded" and path.is_dir() and folder.resolve().is_relative_to(path.resolve())


PROGRAM = Program("ddpm-data", "data", "output", "output='data/{}'", DATA, preflight, resolve, settle)

if __name__ == "__main__":
    main()
