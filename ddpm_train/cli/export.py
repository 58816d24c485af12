"""`ddpm-export`: a trained model for places where there is no torch."""

import importlib.util
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.export import EXPORT, ExportConfig
from ddpm_train.config.program import Program
from ddpm_train.models.source import path_mistakes
from ddpm_train.system import exit_codes
from ddpm_train.system.console import Console
from ddpm_train.system.files import output_mistakes
from ddpm_train.system.signals import handle_signals

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def main() -> None:
    app.main(PROGRAM, job, alone=True)


def preflight(config: ExportConfig) -> Iterator[str]:
    """What is wrong with this config on this machine, a line each. Imports no torch."""
    yield from output_mistakes("output", config.output or "exports")
    yield from path_mistakes(config.pipeline, revision=config.revision)
    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        verb = "is" if len(absent) == 1 else "are"
        yield f"format={config.format}: {', '.join(absent)} {verb} not installed; pip install 'ddpm-train[export]'"


def job(config: ExportConfig, values: dict[str, Any]) -> None:
    console = Console(enabled=True)
    console.say("loading torch, then writing and checking the file …")
    # torch takes seconds to import; a typo must not wait for it.
    from ddpm_train.models.load import load_model
    from ddpm_train.sampling.export import export_onnx
    from ddpm_train.sampling.output import model_folder

    handle_signals(lambda *_: sys.exit(exit_codes.REQUEUE))  # leaving no half of a file behind
    model = load_model(config.pipeline, revision=config.revision, weights=config.weights)
    folder = Path(config.output) if config.output else Path("exports", model_folder(config.pipeline, model.step))
    difference = export_onnx(model, folder, config.resolution)
    rows = {
        "model": model.label,
        "onnx": str(folder / "model.onnx"),
        "sampler": f"python {shlex.quote(str(folder / 'sample.py'))} 16",
    }
    console.table(rows | {"checked": f"differs from the pipeline by at most {difference:.1e}"})


PROGRAM = Program("ddpm-export", "export", "output", "output='exports/{}'", EXPORT, preflight)


if __name__ == "__main__":
    main()
