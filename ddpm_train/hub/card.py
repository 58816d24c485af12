"""The model card: what a reader wants to know of a pushed run, and how to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_train.config.metrics import METRICS, metric_label
from ddpm_train.runs.environment import versions
from ddpm_train.runs.state import ResumedState


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        values: the run's config, without paths.
        state: of the checkpoint.
        weights: "ema" or "unet": which of a checkpoint's weights the pipeline holds.
        records: of the run, one a step.
        scores: of the evaluation, see `evaluation`.
        licence: of the dataset, if it is known.
    """

    values: Mapping[str, Any]
    state: ResumedState
    weights: str
    records: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, Any]]
    licence: str | None
    repo_id: str
    has_grid: bool
    resumable: bool


def model_card(facts: Facts) -> str:
    """The text of README.md, its metadata included."""
    from huggingface_hub import ModelCard

    return str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{_text(facts)}"))


def _metadata(facts: Facts) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = facts.values["dataset"]
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
        for score in _scores(facts)
    ]
    base = facts.values["model"].get("pretrained")
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["ddpm", "diffusion", "unconditional-image-generation", "ddpm-train"],
        datasets=[dataset["path"]] if _on_hub(dataset) else None,
        base_model=base if base and base != "???" else None,
        model_name=facts.repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _text(facts: Facts) -> str:
    values = facts.values
    resolution = values["dataset"]["resolution"]
    height, width = resolution if isinstance(resolution, list | tuple) else (resolution, resolution)
    kind = {1: "grey", 3: "RGB", 4: "RGBA"}[values["dataset"]["channels"]]
    steps = values["noise_scheduler"]["num_train_timesteps"]
    weights = "exponential moving average of the weights" if facts.weights == "ema" else "weights"
    sections = [
        f"# {facts.repo_id.split('/')[-1]}",
        f"An unconditional diffusion model (DDPM) of {height}x{width} {kind} images, trained on "
        f"{_dataset_text(facts)}. The pipeline holds the {weights} after {facts.state.step:,} steps.",
        "![samples](samples.png)" if facts.has_grid else "",
        "## Use",
        "```python\nfrom diffusers import DDPMPipeline\n\n"
        f'pipeline = DDPMPipeline.from_pretrained("{facts.repo_id}")\n'
        f"image = pipeline(num_inference_steps={steps}).images[0]\n```",
        f"Faster, with [ddpm-train](https://pypi.org/project/ddpm-train/): `ddpm-sample pipeline={facts.repo_id}`"
        f" ({values['sampler']['name']}, a handful of steps).",
        *_score_section(facts),
        "## Training",
        _table(_recipe(facts)),
        "`config.yaml` is the whole recipe: `ddpm-train --config-path DIR --config-name config` runs it again"
        f"{' (give it `dataset.path=…`)' if values['dataset']['path'] == '???' else ''}; `metrics.jsonl` has a record "
        "of each step.",
        f"`ddpm-train resume=hf://{facts.repo_id} …` continues the training." if facts.resumable else "",
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in versions().items()),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _recipe(facts: Facts) -> dict[str, str]:
    values, state = facts.values, facts.state
    model, train, noise = values["model"], values["train"], values["noise_scheduler"]
    seconds = _training_seconds(facts)
    changes = ", ".join(f"{one['key']} from step {one['step']}" for one in state.changes)
    batch = train["batch_size"]
    return {
        "Dataset": _dataset_text(facts),
        "Started from": str(model["pretrained"]) if model.get("pretrained") else "",
        "Steps": f"{facts.state.step:,} ({state.images_seen:,} images seen)",
        "Batch": f"{batch} (micro-batches of {state.micro_batch_size})",
        "UNet2DModel": f"channels {list(model['block_out_channels'])}, {model['layers_per_block']} layers per block",
        "Noise": f"{noise['num_train_timesteps']} steps, {noise['beta_schedule']}, predicts {noise['prediction_type']}",
        "Loss": values["loss"]["name"],
        "Optimizer": f"{values['optimizer']['name']}, learning rate {values['optimizer']['lr']:g} "
        f"({values['lr_scheduler']['name']}, {values['lr_scheduler']['warmup_steps']} steps of warm-up)",
        "Average": values["ema"]["name"],
        "Seed": str(values["seed"]),
        "Precision": state.compute["mixed_precision"],
        "Hardware": _hardware(state),
        "Time": _duration(seconds) if seconds else "",
        "Changed on the way": changes,
    }


def _training_seconds(facts: Facts) -> float:
    """From the rates in the records: without evaluation, saving and interruptions."""
    batch = facts.values["train"]["batch_size"]
    return sum(batch / record["images_per_second"] for record in facts.records if record.get("images_per_second"))


def _hardware(state: ResumedState) -> str:
    return f"{state.num_processes} x {state.device}" if state.num_processes > 1 else state.device


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _scores(facts: Facts) -> list[Mapping[str, Any]]:
    """The measured scores, or at least the loss on held-out images."""
    if facts.scores:
        return [score for score in facts.scores if score["value"] is not None]
    known = [record for record in facts.records if record.get("held_out_loss") is not None]
    if not known:
        return []
    depends_on = {"step": known[-1]["step"], "weights": facts.weights}
    return [
        {"name": "held_out_loss", "metric": "held_out_loss", "value": known[-1]["held_out_loss"]}
        | {"lower_is_better": METRICS["held_out_loss"].lower_is_better, "depends_on": depends_on}
    ]


def _score_section(facts: Facts) -> list[str]:
    rows = []
    for score in _scores(facts):
        value = f"{score['value']:.5g}"
        if score.get("interval"):
            low, high = score["interval"]
            value += f" [{low:.5g}, {high:.5g}]"
        elif score.get("standard_deviation") is not None:
            value += f" ± {score['standard_deviation']:.2g}"
        arrow = "↓" if score.get("lower_is_better") else "↑"
        rows.append(f"| {metric_label(score['metric'])} {arrow} | {value} | {_depends_text(score)} |")
    if not rows:
        return []
    return ["## Scores", "\n".join(["| Metric | Value | Measured with |", "|---|---|---|", *rows])]


def _depends_text(score: Mapping[str, Any]) -> str:
    """What a score depends on: without it the number says nothing."""
    on = score["depends_on"]
    sampler = (on.get("sampler") or {}).get("name")
    reference = on.get("reference") or {}
    parts = [
        f"step {on['step']:,}" if on.get("step") is not None else "",
        {"ema": "average of the weights", "unet": "raw weights"}.get(on.get("weights") or "", ""),
        f"{on['num_images']:,} images" if on.get("num_images") else "",
        f"{sampler}, {on.get('num_inference_steps')} steps" if sampler else "",
        f"features of {on['extractor']}" if on.get("extractor") else "",
        f"against {reference.get('num_images', 'the')} images of split {reference['split']}" if reference else "",
        f"seed {on['seed']}" if on.get("seed") is not None else "",
        score.get("warning") or "",
    ]
    return ", ".join(filter(None, parts))


def _dataset_name(dataset: Mapping[str, Any]) -> str:
    return "a folder of images" if dataset["path"] == "???" else str(dataset["path"])


def _dataset_text(facts: Facts) -> str:
    dataset = facts.values["dataset"]
    name = _dataset_name(dataset)
    if _on_hub(dataset):
        name = f"[{name}](https://huggingface.co/datasets/{name})"
    revision = f", revision `{dataset['revision'][:12]}`" if dataset["revision"] else ""
    return f"{name}{revision}, {f'licence {facts.licence}' if facts.licence else 'licence unknown'}"


def _on_hub(dataset: Mapping[str, Any]) -> bool:
    return bool(dataset["source"] == "hub" and dataset["path"] != "???")


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text)])
