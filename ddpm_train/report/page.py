"""What is on the page. Its order and its style are in `page.html.jinja` and `style.css`."""

import base64
import io
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ddpm_train.config.metrics import metric_label
from ddpm_train.config.mistakes import as_written
from ddpm_train.config.text import without_secrets
from ddpm_train.report import charts, commands, formatting
from ddpm_train.report.advice import advice, verdict
from ddpm_train.report.evidence import Evidence
from ddpm_train.report.findings import RULES, findings
from ddpm_train.report.formatting import count, duration, number, weights_name
from ddpm_train.report.plots import HEIGHT, WIDTH, Chart, styled

_MAX_FRAMES = 20
_FRAME_SIDE = 560  # the grids of earlier steps; pixels
_PICTURE_SIDE = 1200  # the last grid, the nearest neighbours


def render(evidence: Evidence) -> str:
    """The page as HTML. Everything that comes from the folder is escaped."""
    unreadable = list(evidence.unreadable)
    frames = list(_frames(evidence, unreadable))
    certificate = evidence.certificate
    nearest = evidence.evaluation / evidence.copying.get("picture", "nearest.png")
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            evidence=evidence,
            subtitle=" · ".join(_subtitle(evidence)),
            findings=[*([verdict(evidence)] if evidence.is_run else []), *findings(evidence)],
            rules=RULES,
            advice=list(advice(evidence)),
            frames=frames,
            nearest=_inline(nearest, _PICTURE_SIDE, unreadable),
            certificate=certificate,
            scores=[score for score in evidence.scores if certificate is None or score is not certificate.score],
            charts=_charts(evidence),
            view_box=f"0 0 {WIDTH} {HEIGHT}",
            evaluations=list(zip(evidence.held_out_loss.steps, evidence.held_out_loss.values, strict=True)),
            speed=list(_speed(evidence)),
            config=yaml.safe_dump(evidence.config, sort_keys=False, allow_unicode=True) if evidence.config else "",
            commands=commands,
            about=list(_about(evidence)),
            unreadable=unreadable,
        )
    )


@cache
def templates() -> Environment:
    """The templates of this folder. Whatever is put into one is escaped, and loses its secrets."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_without_secrets,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = {name: function for name, function in vars(formatting).items() if callable(function)}
    environment.filters.update(functions, metric_label=metric_label)
    return environment


def _without_secrets(value: object) -> object:
    return without_secrets(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _subtitle(evidence: Evidence) -> Iterator[str]:
    """What was trained, in a few words."""
    if dataset := evidence.value("dataset", "path"):
        yield str(dataset)
    resolution, channels = evidence.value("dataset", "resolution"), evidence.value("dataset", "channels")
    if resolution and channels:
        sides = resolution if isinstance(resolution, list) else [resolution, resolution]
        yield " × ".join(map(str, [*sides, channels]))
    if evidence.num_parameters:
        size, unit = (1e6, "M") if evidence.num_parameters >= 1e6 else (1e3, "k")
        yield f"{number(evidence.num_parameters / size)} {unit} parameters"


def _frames(evidence: Evidence, unreadable: list[str]) -> Iterator[tuple[int, Markup]]:
    """The sample grids over the run, evenly chosen; the last one in full."""
    chosen = [evidence.grids[index] for index in charts.spread(len(evidence.grids), _MAX_FRAMES)]
    for step, path in chosen:
        picture = _inline(path, _PICTURE_SIDE if step == chosen[-1][0] else _FRAME_SIDE, unreadable)
        if picture is not None:
            yield step, picture


def _inline(path: Path, max_side: int, unreadable: list[str]) -> Markup | None:
    """An <img>'s `src` (WebP, at most `max_side` large), `width` and `height`.

    None if there is no such file, or if it is damaged, which is then added to `unreadable`.
    """
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            shown = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for torn files
        unreadable.append(f"{path.name}: {error}")
        return None
    return inline_picture(shown, max_side)


def inline_picture(picture: Image.Image, max_side: int) -> Markup:
    """An <img>'s `src` (WebP, at most `max_side` large), `width` and `height`."""
    shown = picture.copy()
    shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    shown.save(encoded, "WEBP", quality=82, method=4)
    data = base64.b64encode(encoded.getvalue()).decode()
    return Markup(f'src="data:image/webp;base64,{data}" width="{shown.width}" height="{shown.height}"')


@styled
def _charts(evidence: Evidence) -> dict[str, list[Chart]]:
    """Section -> its charts."""
    by_timestep = {
        f"step {count(found.step)}": found.loss_by_timestep for found in evidence.evaluations if found.loss_by_timestep
    }
    sections: dict[str, list[Chart | None]] = {
        "loss": [charts.loss(evidence), charts.held_out_loss(evidence)],
        "timesteps": [
            charts.learned_by_timestep(evidence.floor) if evidence.floor else None,
            charts.loss_by_timestep(by_timestep) if by_timestep else None,
        ],
        "scores": [*charts.scores_over_steps(evidence)],
        "bound": [charts.bound_by_timestep(evidence)],
        "cost": [charts.quality_against_cost(evidence.cost) if len(evidence.cost.get("rows", [])) > 1 else None],
        "optimisation": [charts.learning_rate(evidence), charts.gradient_norm(evidence)],
        "speed": [charts.speed(evidence)],
    }
    return {section: [chart for chart in drawn if chart] for section, drawn in sections.items()}


def _speed(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Where the time went, as far as it was recorded."""
    rate, images = evidence.series("images_per_second"), evidence.series("images_seen")
    if not len(rate) or len(rate) != len(images):
        return
    steps_seconds = float((np.diff(images.values, prepend=0.0) / np.maximum(rate.values, 1e-9)).sum())
    stalls, evaluations = evidence.series("checkpoint_stall_seconds"), evidence.series("evaluation_seconds")
    yield "Training steps", f"{duration(steps_seconds)} for {count(images.last)} images"
    yield "Median speed", f"{number(float(np.median(rate.values)))} images per second"
    total = steps_seconds + float(stalls.values.sum() + evaluations.values.sum())
    if len(evaluations):
        seconds = float(evaluations.values.sum())
        share = f"{number(100 * seconds / total, 2)} % of the time"
        yield "Evaluations", f"{count(len(evaluations))}, {duration(seconds)} in all ({share})"
    if len(stalls):
        worst = duration(float(stalls.values.max()))
        share = f"{number(100 * float(stalls.values.sum()) / total, 2)} % of the time"
        yield "Waiting for checkpoints", f"{count(len(stalls))} times, at most {worst} ({share})"


def _about(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Hardware and versions, as far as the run recorded them."""
    versions: dict[str, str] = {}
    if evidence.environments:
        last = evidence.environments[-1]
        processes = last["num_processes"]
        yield "Device", f"{last['device']}{f', {processes} processes' if processes > 1 else ''} ({last['platform']})"
        yield "Computed with", ", ".join(f"{key}={as_written(value)}" for key, value in last["compute"].items())
        if commit := last["commit"]:
            yield "Commit", f"{commit['id'][:12]}{', with changes' if commit['dirty'] else ''}"
        versions |= last["versions"]
    for score in evidence.scores:
        versions |= {key: value for key, value in score.depends_on.get("versions", {}).items() if key not in versions}
    if versions:
        yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    pipeline = evidence.pipeline
    if pipeline.get("step") is not None:
        yield "In pipeline/", f"{weights_name(pipeline['weights'])} of step {count(pipeline['step'])}"
    yield from _history(evidence)


def _history(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What became another on the way: where the run went on elsewhere, and what somebody changed."""
    for before, after in pairwise(evidence.environments):
        changed = [key for key in after if key != "from_step" and before.get(key) != after[key]]
        yield f"From step {count(after['from_step'])} on", f"another {', '.join(changed)}"
    for change in evidence.changes:
        yield f"Changed at step {count(change['step'])}", f"{change['key']}: {change['from']} → {change['to']}"
