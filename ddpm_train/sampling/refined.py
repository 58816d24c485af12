"""What `ddpm-refine` leaves beside a model: the keys by which its samples are made. Imports no torch.

OUTPUT/
  pipeline/         a DDPMPipeline
  guide/            the model that guides it, if one does
  steps.json        the steps that were fitted to it, if they were kept
  refine.json       what was tried, with scores, and what was kept
  README.md         the same for a person
  before_after.png  images before (above) and after, from the same noise
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.system.files import expanded

REFINED, GUIDE, STEPS, CARD, PICTURE = "refine.json", "guide", "steps.json", "README.md", "before_after.png"


@dataclass(frozen=True)
class KeptRecipe:
    """The keys of `ddpm-sample` that go with a refined model.

    Attributes:
        sampler: its name and its arguments.
        guidance_scale: of the model in `guide/`; None: nothing guides.
    """

    sampler: dict[str, Any]
    num_inference_steps: int
    guidance_scale: float | None

    def keys(self, folder: Path) -> dict[str, Any]:
        """As one writes them, for a model in this folder."""
        name, *arguments = self.sampler
        keys = {"sampler": self.sampler[name], **{f"sampler.{each}": self.sampler[each] for each in arguments}}
        keys["num_inference_steps"] = self.num_inference_steps
        if self.guidance_scale is not None:
            keys |= {"guidance.pipeline": str(folder / GUIDE), "guidance.scale": self.guidance_scale}
        return keys


@dataclass(frozen=True)
class _Refined:
    recipe: KeptRecipe | None = None


def is_refined(pipeline: str) -> bool:
    """Whether it is a folder that `ddpm-refine` has left."""
    return os.path.isfile(os.path.join(expanded(pipeline), REFINED))


def with_recipe(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A composed config of `ddpm-sample` or `ddpm-evaluate`, with the recipe of a refined model in the place of the
    keys that the command leaves open. What begins with a picture or compares samplers has none; see `Program.resolve`.
    """
    pipeline = str(values.get("pipeline"))
    if not is_refined(pipeline) or values.get("from_image") or (values.get("compare") or {}).get("samplers"):
        return values, []
    try:
        recipe = read_json(expanded(pipeline) / REFINED, _Refined).recipe
    except (OSError, BadFile) as error:
        return values, [f"pipeline={pipeline}: {error}; give {Path(pipeline, 'pipeline')}, the model alone"]
    if recipe is None:
        return values, [f"pipeline={pipeline}: ddpm-refine has not come to its end; give its command again"]
    given = {text.partition("=")[0] for text in overrides}
    return values | _changes(recipe, values, expanded(pipeline), given), []


def _changes(recipe: KeptRecipe, values: dict[str, Any], folder: Path, given: Collection[str]) -> dict[str, Any]:
    """The values of the sections and keys that a command leaves open."""
    sections = {key.partition(".")[0] for key in given}
    changes: dict[str, Any] = {}
    if "sampler" not in sections:
        changes["sampler"] = recipe.sampler
    if "num_inference_steps" not in sections:
        changes["num_inference_steps"] = recipe.num_inference_steps
    if recipe.guidance_scale is not None and "guidance.pipeline" not in given:
        kept = {"pipeline": str(folder / GUIDE), "scale": recipe.guidance_scale}
        open_ones = {key: value for key, value in kept.items() if f"guidance.{key}" not in given}
        changes["guidance"] = {**values["guidance"], **open_ones}
    return changes
