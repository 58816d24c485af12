"""What the programs' configs have in common: kinds of values, and sections that several of them hold."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict

from ddpm_train.config.metrics import CLASSIFIERS, METRICS, OF_PIXELS, ExtractorName, names_needing, package_mistakes
from ddpm_train.config.samplers import SAMPLERS, argument_mistakes

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the configs inside the package; a checkout has them beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
# What Hydra needs to read a run's config.yaml as a whole config, and to stay as quiet as with ours.
WRITTEN: dict[str, Any] = {
    "defaults": ["_self_", {"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}

# A name such as 2024 is a text; infinity is not a rate.
_STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class Section:
    """What a config's sections have in common: a key that they do not have is refused."""

    __pydantic_config__ = _STRICT

    def mistakes(self) -> Iterator[str]:
        """A line for each combination of the section's own keys that cannot work."""
        yield from ()


def no_bool(value: object) -> object:
    if isinstance(value, bool):  # which Python, and so pydantic, takes for 0 or 1
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(no_bool), Ge(-(2**63)), Lt(2**63)]
Real = Annotated[float, BeforeValidator(no_bool)]
Positive = Annotated[Whole, Gt(0)]
NonNegative = Annotated[Whole, Ge(0)]
# torch's generator on a CPU, which draws the noise of samples, keeps 32 bits of a seed: larger ones would repeat those.
Seed = Annotated[int, BeforeValidator(no_bool), Ge(0), Lt(2**32)]
# Beyond these nothing is meant so: lists and pictures of that size would fill the memory before anything is made.
Side = Annotated[Positive, Le(16_384)]  # of a picture, in pixels
ImageCount = Annotated[Positive, Le(10_000_000)]
FrameCount = Annotated[Positive, Le(10_000)]
Minutes = Annotated[Real, Gt(0), Le(1_000_000)]  # what a timer of the system can wait
Byte = Annotated[Whole, Ge(0), Le(255)]
SamplerName = Annotated[str, SAMPLERS]


def _height_and_width(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a whole number or [height,width]")
    return value


# Modes of torch.compile. None with CUDA graphs: a graph's next run overwrites what it has left, gradients among it.
COMPILE_MODES = ("max-autotune-no-cudagraphs",)


def _auto_or_bool(value: object) -> object:
    if value not in ("auto", True, False):
        raise ValueError("must be auto, true or false")
    return value


def _compiling(value: object) -> object:
    if value not in ("auto", True, False, *COMPILE_MODES):
        raise ValueError(f"must be auto, true, false or {', '.join(COMPILE_MODES)}")
    return value


def _auto_or_count(value: object) -> object:
    if (
        value is None
        or value == "auto"
        or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63)
    ):
        return value
    raise ValueError("must be a whole number above 0, auto or null")


def _path(value: object) -> object:
    if isinstance(value, str) and ("\0" in value or max(map(len, os.fsencode(value).split(b"/"))) > 255):
        raise ValueError("no file has such a name: it holds a zero byte, or more than 255 bytes between two /")
    return value


def _given(value: object) -> object:
    if value == "???":
        raise ValueError("missing; give it a value")
    return value


Resolution = Annotated[tuple[Side, Side], BeforeValidator(_height_and_width)]
AutoBool = Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)]
Compiling = Annotated[str | bool, BeforeValidator(_compiling)]
AutoCount = Annotated[int | Literal["auto"] | None, BeforeValidator(_auto_or_count)]
FilePath = Annotated[str, BeforeValidator(_path)]  # also where it may be the name of a repository instead
Required = BeforeValidator(_given)  # `???` in a config: the user has to say


@dataclass(frozen=True)
class ExtractorChoice(Section):
    """What turns images into features."""

    name: ExtractorName
    weights: FilePath | None  # a local file; None: those published

    def mistakes_with(self, metrics: Sequence[str], section: str = "") -> Iterator[str]:
        """What is wrong with this choice for these metrics, as far as it shows without torch; a line each.

        Args:
            section: where both stand in the config, such as "evaluation.".
        """
        if not names_needing("features", metrics):
            return
        yield from package_mistakes(metrics, f"{section}metrics")
        for name in names_needing("classes", metrics) if self.name not in CLASSIFIERS else ():
            yield (
                f"{section}extractor.name={self.name}: the {METRICS[name].label} needs classes, which this has not; "
                f"use {' or '.join(CLASSIFIERS)}, or leave {name} out"
            )
        if self.weights is not None and self.name == OF_PIXELS:
            yield f"{section}extractor.weights={self.weights}: statistics of pixels have none; leave it out"
        elif self.weights is not None and not os.path.isfile(os.path.expanduser(self.weights)):
            remedy = "give the extractor's weights, or null for those published"
            yield f"{section}extractor.weights={self.weights}: no such file; {remedy}"

    def array_mistakes(self, section: str = "") -> Iterator[str]:
        """A line if it cannot see arrays; `section` as above."""
        if self.name != OF_PIXELS:
            yield (
                f"{section}extractor.name={self.name}: sees pictures of 8 bits in 3 channels, and these are arrays; "
                f"use {section}extractor.name={OF_PIXELS}"
            )


def _name_alone(value: object) -> object:
    return {"name": value, "weights": None} if isinstance(value, str) else value


Extractor = Annotated[ExtractorChoice, BeforeValidator(_name_alone)]


@dataclass(frozen=True)
class Hub(Section):
    """What a run pushes to the Hugging Face Hub, and when. No key holds a token: configs are saved and pushed."""

    push: bool
    repo_id: str | None  # None: the token's user and the run's name
    private: bool | None  # of a repository that does not exist yet; None: as the account has it
    revision: str | None  # a branch; None: main
    # Names of transformers. "checkpoint" and "all_checkpoints" push what a resume needs besides the pipeline.
    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"]
    retry_minutes: Minutes  # a push that fails is tried again for so long
    finish_minutes: Minutes  # the end of a run waits for its push no longer than this
    stall_seconds: Annotated[Real, Gt(0), Le(1_000_000)]  # a connection on which nothing moves for so long is given up


@dataclass(frozen=True)
class Sampler(Section):
    """A diffusers scheduler that samples, built from the model's own noise schedule.

    In a config the arguments, of its constructor and of its `step`, stand beside the name: `sampler.eta=0.5`.
    """

    name: SamplerName
    arguments: dict[str, Any] = field(default_factory=dict)

    def mistakes(self) -> Iterator[str]:
        yield from argument_mistakes(self.name, self.arguments)


def _arguments_apart(value: object) -> object:
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    return {"name": value["name"], "arguments": {key: item for key, item in value.items() if key != "name"}}


SamplerChoice = Annotated[Sampler, BeforeValidator(_arguments_apart)]
