"""The page that a refinement leaves: what was kept and why, and how to use it."""

from collections.abc import Iterator
from pathlib import Path

from ddpm_train.config.mistakes import as_written
from ddpm_train.config.refine import RefineConfig
from ddpm_train.evaluation.refine_record import Record, Stage
from ddpm_train.runs.folder import PIPELINE
from ddpm_train.sampling.refined import PICTURE, STEPS


def card(record: Record, config: RefineConfig, folder: Path) -> str:
    """Markdown."""
    return "\n".join([*_head(record, config, folder), *(line for stage in record.stages for line in _stage(stage))])


def _head(record: Record, config: RefineConfig, folder: Path) -> Iterator[str]:
    assert record.recipe is not None
    keys = " ".join(f"{key}={as_written(value)}" for key, value in record.recipe.keys(folder).items())
    kept = [stage.name for stage in record.stages if stage.kept]
    yield f"# {config.pipeline}, refined"
    yield ""
    yield f"Kept: {', '.join(kept) or 'nothing; the model is as it was'}."
    if record.overall is not None:
        yield f"{config.metric.upper()} of {config.num_images:,} images, all together: {record.overall}."
    yield ""
    yield f"![Images before, above those after, from the same noise]({PICTURE})"
    yield ""
    yield f"`{PIPELINE}/` is a plain DDPMPipeline. ddpm-sample takes the rest from `refine.json`:"
    yield ""
    yield "```bash"
    yield f"ddpm-sample pipeline={folder}"
    yield f"ddpm-sample pipeline={folder / PIPELINE} {keys}    # the same, said in full"
    yield "```"
    yield ""
    if record.recipe.sampler["name"] == "fitted":
        yield f"`{STEPS}` holds the fitted steps, for use without ddpm-train."
        yield ""
    yield "Half of the held-out images choose. The other half, with other noise, decides what is kept: the 95 %"
    yield "interval of the difference, of the same resampled images, must lie below 0. Less is better."


def _stage(stage: Stage) -> Iterator[str]:
    yield ""
    yield f"## {stage.name}"
    yield ""
    yield f"{stage.why}."
    if stage.tried:
        yield ""
        yield "| tried | score by the half that chooses |"
        yield "|---|---|"
        yield from (f"| {name} | {value} |" for name, value in stage.tried.items())
    yield from (f"\nLeft out: {line}" for line in stage.left_out)
