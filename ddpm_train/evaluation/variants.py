"""What `ddpm-refine` tries in each of its stages: other averages, guides and samplers for one model."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from ddpm_train.config.ema import AVERAGES, EMA
from ddpm_train.config.parts import Sampler
from ddpm_train.config.refine import RefineConfig
from ddpm_train.models.load import Model, load_model
from ddpm_train.models.weights import digest_of
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS, read_part, run_of
from ddpm_train.sampling.guidance import Guidance
from ddpm_train.sampling.recipe import sampler_mistakes

_MOST_AVERAGED, _MOST_GUIDES = 5, 3


@dataclass(frozen=True)
class Variant:
    """What makes images, besides the seed and the number of steps."""

    model: Model
    sampler: Sampler
    guidance: Guidance | None = None

    def identity(self) -> tuple[Any, ...]:
        """Equal where the images are."""
        guidance = None if self.guidance is None else str(self.guidance.identity())
        return self.model.digest, str(self.sampler), guidance


# By what a person calls them. To load one may raise `Mistakes`.
Candidates = Mapping[str, Callable[[], Variant]]


@dataclass(frozen=True)
class _Trained:
    """The part of a run's config that says which averages it keeps."""

    ema: Annotated[EMA, AVERAGES]


def candidates_of(stage: str, config: RefineConfig, current: Variant) -> tuple[Candidates, str]:
    """What a stage tries in the place of what there is, and why it may be nothing."""
    if stage == "sampler":
        return _samplers(config, current), "no other sampler can sample this model"
    run = run_of(config.pipeline)
    paths = _checkpoints(run, current.model)
    if run is None or not paths:
        return {}, "this is no run with checkpoints, from which it could be made"
    if stage == "guidance":
        return _guides(config, current, paths), "the run keeps no earlier checkpoint; checkpoint.keep_every_steps does"
    return _averages(config, current, run, paths), "the run keeps one checkpoint; checkpoint.keep_last keeps more"


def _checkpoints(run: Path | None, model: Model) -> list[Path]:
    """Those of the run up to the model's, oldest first; none if the model's own is not there."""
    if run is None or model.step is None:
        return []
    paths = [path for path in checkpoint.published(run / CHECKPOINTS) if checkpoint.step_of(path) <= model.step]
    return paths if paths and checkpoint.step_of(paths[-1]) == model.step else []


def _averages(config: RefineConfig, current: Variant, run: Path, paths: list[Path]) -> Candidates:
    if read_part(run, _Trained).ema.exponents:
        return {f"ema@{width:g}": partial(_of_width, current, paths[-1], width) for width in config.widths}
    counts = range(2, min(len(paths), _MOST_AVERAGED) + 1)
    return {f"the mean of {count} checkpoints": partial(_mean, current, paths[-count:]) for count in counts}


def _of_width(current: Variant, path: Path, width: float) -> Variant:
    return replace(current, model=load_model(str(path), weights=f"ema@{width:g}"))


def _mean(current: Variant, paths: list[Path]) -> Variant:
    """Of the same weights, averaged or raw, of each checkpoint; in double precision."""
    model = current.model
    states = [load_model(str(path), weights=model.weights or "auto").unet.state_dict() for path in paths]
    unet = copy.deepcopy(model.unet)
    unet.load_state_dict({key: torch.stack([state[key].double() for state in states]).mean(0) for key in states[0]})
    label = f"{model.label}, mean of {len(paths)} checkpoints"
    digest = digest_of(unet, model.noise_scheduler, model.values)
    return replace(current, model=replace(model, unet=unet, label=label, digest=digest, weights="ema"))


def _guides(config: RefineConfig, current: Variant, paths: list[Path]) -> Candidates:
    """Of many checkpoints the first, the one in the middle, and the last but the model's own."""
    earlier = paths[:-1]
    if len(earlier) > _MOST_GUIDES:
        earlier = [earlier[number * (len(earlier) - 1) // (_MOST_GUIDES - 1)] for number in range(_MOST_GUIDES)]
    return {
        f"{path.name}, scale {scale:g}": partial(_guided, current, path, scale)
        for path in earlier
        for scale in config.scales
    }


def _guided(current: Variant, path: Path, scale: float) -> Variant:
    return replace(current, guidance=Guidance(load_model(str(path)), scale))


def _samplers(config: RefineConfig, current: Variant) -> Candidates:
    model, steps = current.model, config.num_inference_steps
    others = [Sampler(name) for name in dict.fromkeys(config.samplers) if name != current.sampler.name]

    def able(sampler: Sampler) -> bool:
        asked = [(sampler, steps)]
        return not [*sampler_mistakes(model.noise_scheduler, asked, learned_variance=model.learned_variance)]

    return {sampler.name: partial(replace, current, sampler=sampler) for sampler in filter(able, others)}
