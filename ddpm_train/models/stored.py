"""The small files of a stored model, as values of known types and sizes: diffusers reads none that was not checked
here. Imports no torch.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from annotated_types import Le, Len
from pydantic import AfterValidator, ConfigDict, with_config
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict  # pydantic takes Python's own from 3.12 on

from ddpm_train.config.foreign import BadFile, printable, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.model import Model, Width
from ddpm_train.config.noise import NoiseScheduler
from ddpm_train.config.parts import Positive
from ddpm_train.system.files import lfs_mistakes

SCHEDULER = "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model"
_WEIGHT_KINDS = ("F16", "BF16", "F32", "F64")
_LARGEST_NUMBER, _LONGEST = 10**6, 10_000


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Keys that nobody here knows may be what a sampler of diffusers takes over."""
    for key, value in values.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, dict | list) or (isinstance(item, int) and abs(item) > _LARGEST_NUMBER):
                raise ValueError(f"{key}: must be a number of at most {_LARGEST_NUMBER}, a text or a list of them")
        if isinstance(value, str | list) and len(value) > _LONGEST:
            raise ValueError(f"{key}: must be no longer than {_LONGEST}")
    return values


def _shape(types: Mapping[str, Any]) -> Any:
    """A mapping whose keys, if they are there, are of these types; others must be plain."""
    types = {**types, "_class_name": str, "_diffusers_version": str, "_use_default_values": list[str]}
    known = TypedDict("known", types, total=False)  # type: ignore[misc]  # mypy wants the keys written out
    return Annotated[with_config(ConfigDict(extra="allow", allow_inf_nan=False))(known), AfterValidator(_plain)]


_layout = {key: kind for key, kind in get_type_hints(Model, include_extras=True).items() if key != "pretrained"}
_Side = Annotated[Positive, Le(16_384)]
_schedule = get_type_hints(NoiseScheduler, include_extras=True)
UNET = _shape(
    {
        **_layout,
        "sample_size": _Side | tuple[_Side, _Side] | None,
        "in_channels": Width,
        "out_channels": Width,
        "num_train_timesteps": _schedule["num_train_timesteps"] | None,
    }
)
SCHEDULE = _shape(
    {
        **_schedule,
        "beta_schedule": str,  # an extension's own name stands beside the betas that it has computed
        "variance_type": _schedule["variance_type"] | None,  # of other schedulers than DDPM's
        "predict_epsilon": bool,
    }
)


# What tells a model that this project is for from others, which have configs of their own.
class Kind(TypedDict, total=False):
    _class_name: str
    class_embed_type: str | None
    num_class_embeds: int | None


class Parts(TypedDict, total=False):
    _class_name: str
    unet: Annotated[list[str | None], Len(2, 2)]
    vae: Any
    vqvae: Any


class _Shards(TypedDict):
    metadata: dict[str, Any]
    weight_map: dict[str, str]  # name of a tensor -> file


def read(place: str, path: Path, shape: Any) -> dict[str, Any]:
    """A JSON file of a model.

    Args:
        place: how the user named the model, such as "pipeline=outputs/cats".
        shape: `UNET`, `SCHEDULE`, `Kind` or `Parts`.

    Raises:
        Mistakes: it cannot be read, or holds something else.
    """
    try:
        values = read_json(path, shape)
    except BadFile as error:
        raise Mistakes(f"{place}: {error}") from None
    except OSError as error:
        raise Mistakes(printable(f"{place}: {path} cannot be read: {error.strerror}")) from None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}  # as in JSON


def check_weights(place: str, part: Path) -> str | None:
    """The variant of the weights in a folder, such as "fp16", if there are no plain ones.

    Raises:
        Mistakes: there are none, or diffusers would read such as are no files of this folder, or no numbers.
    """
    files = sorted(part.glob(f"{_WEIGHTS}*"))
    for path in files:
        if not path.is_file():  # to open a pipe would wait for its other end
            raise Mistakes(printable(f"{place}: {path} is no regular file"))
    for path in [path for path in files if path.name.endswith(".index.json")]:
        for name in sorted(set(read(place, path, _Shards)["weight_map"].values())):
            if Path(name).name != name or not (part / name).is_file():
                raise Mistakes(printable(f"{place}: {path} names {name}, which is no file beside it"))
            files.append(part / name)
    variant = _variant(place, part)
    in_safetensors = [path for path in dict.fromkeys(files) if path.suffix == ".safetensors"]
    for path in in_safetensors or files:
        if lines := list(lfs_mistakes(place, path)):
            raise Mistakes(*lines)
    for path in in_safetensors:
        _check_kinds(place, path)
    return variant


def _variant(place: str, part: Path) -> str | None:
    """What stands between the name and the ending of all weights: `diffusion_pytorch_model.fp16.safetensors`."""
    names = [path.name for path in part.glob(f"{_WEIGHTS}*") if path.suffix in (".safetensors", ".bin", ".json")]
    middles = {re.sub(r"\.(safetensors|bin)(\.index)?|-\d+-of-\d+", "", name.removeprefix(_WEIGHTS)) for name in names}
    variants = sorted({middle.removesuffix(".json").removeprefix(".") for middle in middles})
    if not variants:
        raise Mistakes(f"{place}: no weights in {part}; it must hold {_WEIGHTS}.safetensors")
    if "" not in variants and len(variants) > 1:
        raise Mistakes(
            f"{place}: several kinds of weights ({', '.join(variants)}), and no {_WEIGHTS}.safetensors; name one so"
        )
    return None if "" in variants else variants[0]


def _check_kinds(place: str, path: Path) -> None:
    try:
        with safe_open(path, framework="np") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise Mistakes(printable(f"{place}: {path} cannot be read: {error}")) from None
    if wrong := [name for name, kind in kinds.items() if kind not in _WEIGHT_KINDS]:
        raise Mistakes(printable(f"{place}: {path} holds {wrong[0]} as {kinds[wrong[0]]}, which is no weight"))
