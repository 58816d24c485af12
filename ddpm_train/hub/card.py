"""The model card: what a reader wants to know of a pushed run, and how to use it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ddpm_train.config.metrics import METRICS, metric_label
from ddpm_train.config.text import printable, without_secrets
from ddpm_train.report.certificate import Certificate
from ddpm_train.report.formatting import count, duration, guidance_text
from ddpm_train.report.stored import Score
from ddpm_train.runs.environment import versions
from ddpm_train.runs.state import ResumedState

_HELD_OUT_LOSS = "held_out_loss"


def model_card(
    *,
    config: Mapping[str, Any],
    state: ResumedState,
    weights: str,
    records: Iterable[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    certificate: Certificate | None,
    licence: str | None,
    repo_id: str,
    has_grid: bool,
    resumable: bool,
) -> str:
    """The text of README.md, its metadata included.

    Args:
        config: the run's, as plain values without paths.
        state: of the checkpoint.
        weights: "ema" or "unet": which of a checkpoint's weights the pipeline holds.
        records: of the run, one a step.
        scores: of the evaluation, see `evaluation`; without any, the card shows the loss on held-out images.
        certificate: whether these weights copy their training images; None: it was not measured.
        licence: of the dataset, if it is known.
    """
    from huggingface_hub import ModelCard

    resolution = config["dataset"]["resolution"]
    height, width = resolution if isinstance(resolution, list | tuple) else (resolution, resolution)
    seconds, evaluated = _read_through(records, config["train"]["batch_size"])
    shown = [score for score in scores if score["value"] is not None] if scores else _held_out_loss(evaluated, weights)
    text = _template().render(
        title=repo_id.split("/")[-1],
        repo_id=Markup(repo_id),  # which the Hub has taken
        config=config,
        state=state,
        weights=weights,
        height=height,
        width=width,
        dataset=_dataset_text(config["dataset"], licence),
        seconds=seconds,
        scores=[score for score in shown if not (certificate and certificate.score and _is(certificate.score, score))],
        certificate=certificate,
        has_grid=has_grid,
        resumable=resumable,
        versions=versions(),
    )
    return str(ModelCard(f"---\n{_metadata(config, repo_id, shown).to_yaml()}\n---\n\n{text}\n"))


def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=folder, finalize=_plain, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"count": count, "duration": duration, "metric_label": metric_label}
    templates.filters |= {"value": _value, "measured_with": _measured_with}
    return templates.get_template("card.md.jinja")


def _is(one: Score, other: Mapping[str, Any]) -> bool:
    return (one.name, one.value) == (other["name"], other["value"])


def _read_through(records: Iterable[Mapping[str, Any]], batch_size: int) -> tuple[float, Mapping[str, Any]]:
    """How long it trained, by its rates (without evaluation, saving, interruptions), and what it measured last."""
    seconds = 0.0
    evaluated: Mapping[str, Any] = {}
    for record in records:
        if rate := record.get("images_per_second"):
            seconds += batch_size / rate
        if record.get(_HELD_OUT_LOSS) is not None:
            evaluated = record
    return seconds, evaluated


def _metadata(config: Mapping[str, Any], repo_id: str, scores: Sequence[Mapping[str, Any]]) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = config["dataset"]
    results = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset["path"] if _on_hub(dataset) else "images",
            dataset_name=_dataset_name(dataset),
            dataset_split=score["depends_on"].get("reference", {}).get("split") or dataset["split"],
            dataset_revision=dataset["revision"] if _on_hub(dataset) else None,
            metric_type=score["metric"],
            metric_name=score["name"],
            metric_value=score["value"],
        )
        for score in scores
    ]
    base = config["model"].get("pretrained")
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["ddpm", "diffusion", "unconditional-image-generation", "ddpm-train"],
        datasets=[dataset["path"]] if _on_hub(dataset) else None,
        base_model=base if base and base != "???" else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _held_out_loss(record: Mapping[str, Any], weights: str) -> list[dict[str, Any]]:
    """The loss on held-out images in a record as a score; nothing if there is none."""
    if not record:
        return []
    lower_is_better = METRICS[_HELD_OUT_LOSS].lower_is_better
    score = {"name": _HELD_OUT_LOSS, "metric": _HELD_OUT_LOSS, "value": record[_HELD_OUT_LOSS]}
    return [score | {"lower_is_better": lower_is_better, "depends_on": {"step": record["step"], "weights": weights}}]


def _value(score: Mapping[str, Any]) -> str:
    value = f"{score['value']:.5g}"
    if score.get("interval"):
        low, high = score["interval"]
        return Markup(f"{value} [{low:.5g}, {high:.5g}]")
    deviation = score.get("standard_deviation")
    return value if deviation is None else f"{value} ± {deviation:.2g}"


def _measured_with(score: Mapping[str, Any]) -> str:
    """What a score depends on: without it the number says nothing."""
    on = score["depends_on"]
    sampler = (on.get("sampler") or {}).get("name")
    reference = on.get("reference") or {}
    parts = [
        f"step {on['step']:,}" if on.get("step") is not None else "",
        {"ema": "average of the weights", "unet": "raw weights"}.get(on.get("weights") or "", on.get("weights") or ""),
        f"{on['num_images']:,} images" if on.get("num_images") else "",
        f"{sampler}, {on.get('num_inference_steps')} steps" if sampler else "",
        guidance_text(on),
        f"features of {on['extractor']}" if on.get("extractor") else "",
        f"against {reference.get('num_images', 'the')} images of split {reference['split']}" if reference else "",
        f"seed {on['seed']}" if on.get("seed") is not None else "",
        score.get("warning") or "",
    ]
    return ", ".join(filter(None, parts))


def _dataset_name(dataset: Mapping[str, Any]) -> str:
    return "a folder of images" if dataset["path"] == "???" else str(dataset["path"])


def _dataset_text(dataset: Mapping[str, Any], licence: str | None) -> Markup:
    name = _plain(_dataset_name(dataset))
    if _on_hub(dataset) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset["path"], re.ASCII):
        name = f"[{name}](https://huggingface.co/datasets/{dataset['path']})"
    commit = re.sub(r"[^\w.-]", "", dataset["revision"] or "")[:12]
    revision = f", revision `{commit}`" if commit else ""
    return Markup(f"{name}{revision}, {f'licence {_plain(licence)}' if licence else 'licence unknown'}")


def _plain(value: object) -> object:
    """A text from elsewhere as Markdown shows it: in one line, a part of no table, link, picture or tag.

    What this module has made is `Markup`, and stays.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"[\\`*\[\]<>|&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(without_secrets(value), 2000))


def _on_hub(dataset: Mapping[str, Any]) -> bool:
    return bool(dataset["source"] == "hub" and dataset["path"] != "???")
