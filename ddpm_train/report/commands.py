"""The commands to go on with, quoted for Hydra and for a shell."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ddpm_train.report.evidence import Evidence
from ddpm_train.runs.folder import PIPELINE


def resume(evidence: Evidence, overrides: Sequence[str] = ()) -> str:
    """Continue a run with its own config, from the folder where it was started."""
    return shlex.join(["ddpm-train", "--config-path", str(evidence.path), "--config-name", "config", *overrides])


def sample(evidence: Evidence, sampler: str | None = None, steps: int | None = None, of: Path | None = None) -> str:
    """Sample from a run, or from one `of` its checkpoints."""
    chosen = [f"sampler={sampler}", f"num_inference_steps={steps}"] if re.fullmatch(r"\w+", sampler or "") else []
    return shlex.join(["ddpm-sample", _pipeline(of or evidence.path), *chosen])


def evaluate(evidence: Evidence) -> str:
    return shlex.join(["ddpm-evaluate", _pipeline(evidence.path)])


def reproduce(evidence: Evidence) -> str:
    return shlex.join(["ddpm-reproduce", str(evidence.path)])


def in_diffusers(evidence: Evidence) -> str:
    """Python that samples without this project."""
    steps = evidence.value("evaluation", "num_inference_steps") or 25
    return (
        "from diffusers import DDPMPipeline, DPMSolverMultistepScheduler\n\n"
        f"pipeline = DDPMPipeline.from_pretrained({str(evidence.path / PIPELINE)!r})\n"
        "pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)\n"
        f"images = pipeline(batch_size=16, num_inference_steps={steps}).images"
    )


def _pipeline(folder: Path) -> str:
    """`pipeline=…`, in quotes where Hydra would read more than a string into it."""
    path = str(folder)
    if re.fullmatch(r"[\w./~+-]+", path, re.ASCII):
        return f"pipeline={path}"
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", path)
    return f"pipeline='{escaped}'"
