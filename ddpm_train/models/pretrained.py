"""`model.pretrained=…`: which network that is, before anything slow starts. Imports no torch.

Its config replaces the chosen layout. Keys of the network in the command must agree with it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, printable
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.hub.access import ASKING_SECONDS, find_commit, into_cache, limit_waiting, reason
from ddpm_train.hub.preflight import parse_uri
from ddpm_train.models.source import path_mistakes
from ddpm_train.models.stored import UNET, Kind, check_weights, read
from ddpm_train.runs.folder import CONFIG, PIPELINE, read_config
from ddpm_train.runs.identity import in_columns
from ddpm_train.system.files import expanded

# Where a folder or a repository has the UNet's config: a pipeline, a UNet alone, a run of this program.
_PLACES = ("unet/config.json", "config.json", f"{PIPELINE}/unet/config.json")
# May differ from what was trained: it shapes no weight.
_FREE = ("pretrained", "dropout")


def resolve(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A composed config with the network of `model.pretrained`, and a line for each mistake about that.

    A run that was begun has its network in its record, and does not need the source again.

    Args:
        overrides: of the command line. Only these can disagree with the source, no default of a preset.
    """
    model = values.get("model")
    source = model.get("pretrained") if isinstance(model, Mapping) else None
    if isinstance(source, int | float):  # a folder's name may be a number
        source = str(source)
    if not isinstance(model, dict) or not isinstance(source, str):
        return values, []
    try:
        layout = _recorded(values, source) or _layout(source, model)
    except Mistakes as mistakes:
        return values, list(mistakes.lines)
    except OSError as error:
        return values, [f"model.pretrained={printable(source)}: {error.strerror}; give another folder, or owner/name"]
    channels, own = layout.pop("channels", None), values["dataset"].get("channels")
    lines = []
    if channels not in (None, own):
        lines.append(
            f"dataset.channels={as_written(own)}: model.pretrained={source} is of {channels} channels; "
            f"use dataset.channels={channels}"
        )
    keys = [text.partition("=")[0].lstrip("+") for text in overrides]
    named = [key for key in layout if f"model.{key}" in keys or "model" in keys]
    rows = [
        (f"model.{key}", as_written(layout[key]), as_written(model.get(key)))
        for key in named
        if layout[key] != model.get(key)
    ]
    if rows:
        title = f"model.pretrained={source}: its network is another than the one you describe; leave these keys out:"
        lines.append("\n".join([title, *in_columns(("key", "pretrained", "yours"), *rows)]))
    return {**values, "model": {**model, **layout}}, lines


def _recorded(values: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The network in the record of a run that began with `source`; None if there is none to go on from."""
    recorded = (recorded_config(values) or {}).get("model")
    if not isinstance(recorded, dict):
        return None
    began = recorded.get("pretrained")
    # A run that was shared does not say which folder it began with.
    return {key: value for key, value in recorded.items() if key not in _FREE} if began in (source, "???") else None


def recorded_config(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config that the run began with which this one goes on with; None if there is none, or it is damaged."""
    try:
        return read_config(_record(values))
    except (OSError, BadFile, KeyError):
        return None


def _record(values: Mapping[str, Any]) -> Path:
    own = Path(str(values["output_dir"])) / CONFIG
    resume = str(values["resume"])
    if resume == "never" or own.is_file():
        return own
    if uri := parse_uri(resume):
        repo_id, revision = uri
        try:
            return _download(repo_id, CONFIG, revision)
        except Exception:  # `find_start` says what is wrong there
            return own
    return own if resume == "auto" else Path(resume).parent.parent / CONFIG


def _layout(source: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The UNet2DModel arguments in the source's config, and its number of "channels".

    Raises:
        Mistakes: there is no such thing, or it is no unconditional pixel model.
    """
    path = _find_config(source)
    kind = read(f"model.pretrained={source}", path, Kind)
    name = kind.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise Mistakes(f"model.pretrained={source}: a {name}; give a UNet2DModel or a pipeline that has one")
    if kind.get("class_embed_type") or kind.get("num_class_embeds"):
        raise Mistakes(f"model.pretrained={source}: wants class labels; give an unconditional model")
    config = read(f"model.pretrained={source}", path, UNET)
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise Mistakes(
            f"model.pretrained={source}: {config.get('in_channels', 3)} channels in and "
            f"{config.get('out_channels', 3)} out, a learned variance, for which there is no loss; give another model"
        )
    if config.get("time_embedding_type") == "fourier":
        raise Mistakes(
            f"model.pretrained={source}: its time_embedding_type=fourier takes the logarithm of the timestep, and the "
            "first timestep is 0; give another model"
        )
    if expanded(source).is_dir():
        check_weights(f"model.pretrained={source}", path.parent)
    layout = {key: config[key] for key in defaults if key in config and key not in _FREE}
    return {**layout, "channels": config.get("in_channels", 3)}


def _find_config(source: str) -> Path:
    if lines := list(path_mistakes(source, "model.pretrained")):
        raise Mistakes(*lines)
    folder = expanded(source)
    if folder.is_dir():
        found = [folder / place for place in _PLACES if (folder / place).is_file()]
        if not found:
            raise Mistakes(f"model.pretrained={source}: no UNet in it (looked for {', '.join(_PLACES)})")
        return found[0]
    from huggingface_hub.errors import RemoteEntryNotFoundError

    limit_waiting(ASKING_SECONDS)
    _, problem = find_commit("model", source, None, key="model.pretrained", revision_key="model.pretrained")
    for place in _PLACES[:2]:
        try:
            return into_cache(f"model.pretrained={source}", partial(_download, source, place, None))
        except Mistakes:
            raise
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:
            problem = problem or reason(error)
    if problem is None:
        raise Mistakes(f"model.pretrained={source}: no UNet in it (looked for {' and '.join(_PLACES[:2])})")
    raise Mistakes(f"model.pretrained={source}: {problem}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE")


def _download(repo_id: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    limit_waiting(ASKING_SECONDS)
    return Path(hf_hub_download(repo_id, name, revision=revision))
