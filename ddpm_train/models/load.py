"""`pipeline=…`: a run, a checkpoint, a folder that diffusers saved, or a Hub repository -> UNet and noise schedule."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging

from ddpm_train.config.ema import width_of
from ddpm_train.config.foreign import BadFile, printable, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.objective import Judging
from ddpm_train.config.pixels import PixelValues
from ddpm_train.hub.access import find_commit, into_cache, reason
from ddpm_train.models.averages import average_of_width
from ddpm_train.models.schedule import stored_scheduler
from ddpm_train.models.source import CONFIG as UNET_CONFIG
from ddpm_train.models.source import INDEX, path_mistakes
from ddpm_train.models.stored import UNET, Kind, Parts, check_weights, read
from ddpm_train.models.trial import config_refusal, refusal
from ddpm_train.models.unet import Description, build_unet, unet_of
from ddpm_train.models.weights import digest_of, refuse_non_finite
from ddpm_train.runs import checkpoint
from ddpm_train.runs.best import read_selection
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, PIPELINE, PIXEL_VALUES, is_best, read_origin, read_part
from ddpm_train.runs.state import read_state, verify
from ddpm_train.system.failures import first_line
from ddpm_train.system.files import expanded, lfs_mistakes

P = TypeVar("P")


@dataclass(frozen=True)
class Model:
    """What samples: the UNet, float32, in eval mode, on the CPU, and the noise schedule that it was trained with."""

    label: str  # which weights these are, such as "outputs/cats, step 1,400, EMA weights"
    unet: UNet2DModel
    noise_scheduler: DDPMScheduler  # also keeps the other keys of the stored scheduler's config
    digest: str  # a hash of the weights and of both configs: what the images depend on, wherever it was loaded from
    step: int | None  # how long it was trained; None: not known
    weights: str | None  # "ema", "ema@0.1" or "unet"; None: not known
    values: PixelValues | None = None  # what the numbers mean that it makes; None: it makes pictures of 8 bits

    @property
    def learned_variance(self) -> bool:
        return bool(self.unet.config.out_channels == 2 * self.unet.config.in_channels)

    @property
    def sample_size(self) -> tuple[int, int] | None:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else size and tuple(size)


def load_model(pipeline: str, *, revision: str | None = None, weights: str = "auto") -> Model:
    """Load what `pipeline` names.

    Args:
        weights: "ema" or "unet" where a run or a checkpoint holds both; "ema@0.1" is the average of this width, made of
            those that an `ema=power` has kept; "auto" is the average if there is one.

    Raises:
        Mistakes: there is no such thing, half of it is missing, or it is no unconditional image model.
    """
    folder = expanded(pipeline)
    if is_best(pipeline):
        folder = _best(pipeline, folder.parent)
    elif not folder.is_dir():
        folder = into_cache(f"pipeline={pipeline}", lambda: _download(pipeline, revision))
    if re.match(r"step_\d+", folder.name) or (folder / checkpoint.MANIFEST).exists():
        return _from_checkpoint(pipeline, folder, weights)
    if (folder / INDEX).exists() or (folder / UNET_CONFIG).exists():
        return _from_diffusers(pipeline, folder, weights)
    return _from_run(pipeline, folder, weights)


def _from_run(pipeline: str, run: Path, weights: str) -> Model:
    saved = run / PIPELINE
    checkpoints = checkpoint.published(run / CHECKPOINTS)
    if (saved / INDEX).exists() and (
        not checkpoints or weights in ("auto", read_origin(saved).get("weights", weights))
    ):
        return _from_diffusers(pipeline, saved, weights)
    if not checkpoints:
        holds = "a run without a checkpoint yet" if (run / CONFIG).exists() else "no run, checkpoint or model"
        raise Mistakes(f"pipeline={pipeline}: {holds}; give the folder of a run, a checkpoint, or one with {INDEX}")
    return _from_checkpoint(pipeline, checkpoints[-1], weights)


def _from_checkpoint(pipeline: str, path: Path, weights: str) -> Model:
    """The model that the run's config describes, with the checkpoint's tensors."""
    try:
        verify(path, checkpoint.step_of(path))
    except checkpoint.BadCheckpoint as error:
        line = f"pipeline={pipeline}: {path.name} is not a whole checkpoint: {error}"
        raise Mistakes(next(lfs_mistakes(f"pipeline={pipeline}", path), line)) from None
    run = path.parent.parent
    description = _description(pipeline, run)
    with _loading(pipeline):
        tensors = checkpoint.load(path)
        chosen = weights if weights != "auto" else "ema" if "ema" in tensors else "unet"
        width = width_of(chosen)
        if width is None and chosen not in tensors:
            raise Mistakes(f"weights={weights}: this run keeps no average (ema=none); use weights=unet")
        unet = build_unet(description.model, description.dataset, description.noise_scheduler)
        unet.load_state_dict(dict(tensors[chosen]) if width is None else average_of_width(path, width))
        known = {"step": read_state(path).step, "weights": chosen}
        return _model(pipeline, unet, description.noise_scheduler.build(), known, description.dataset.values)


def _read_part(pipeline: str, run: Path, part: type[P]) -> P:
    """What `part` takes of the config of a run, which must have one."""
    if not (run / CONFIG).is_file():
        raise Mistakes(f"pipeline={pipeline}: no {run / CONFIG}, which says what model this is; keep it with the run")
    try:
        return read_part(run, part)
    except (OSError, BadFile) as error:
        raise Mistakes(printable(f"pipeline={pipeline}: {run / CONFIG} cannot be read: {first_line(error)}")) from None


def _description(pipeline: str, run: Path) -> Description:
    """What a run's config says of its model, if that is one."""
    description = _read_part(pipeline, run, Description)
    model, images, noise = description.model, description.dataset, description.noise_scheduler
    reason = refusal(lambda: unet_of(model, images, noise.num_train_timesteps), images.resolution)
    lines = [f"pipeline={pipeline}: no network of the layout in {run / CONFIG} works: {reason}"] if reason else []
    if lines := [*lines, *noise.mistakes()]:
        raise Mistakes(*lines)
    return description


def _best(pipeline: str, checkpoints: Path) -> Path:
    """The best of the checkpoints that are there, by the run's own objective and records."""
    run = checkpoints.parent
    steps = [checkpoint.step_of(path) for path in checkpoint.published(checkpoints)]
    best = read_selection(run, _read_part(pipeline, run, Judging)).best(steps)
    if best is None:
        raise Mistakes(
            f"pipeline={pipeline}: none of the checkpoints there has been evaluated by the run's objective; "
            "give one by its name"
        )
    return checkpoints / checkpoint.step_name(best)


def _from_diffusers(pipeline: str, folder: Path, weights: str) -> Model:
    """A DDPMPipeline or DDIMPipeline, its parts in folders or (as of old) side by side; or a UNet2DModel alone."""
    part = folder / "unet" if (folder / "unet" / UNET_CONFIG).exists() else folder
    _refuse_other_models(pipeline, folder, part)
    known = read_origin(folder) or read_origin(folder.parent)
    if weights != "auto" and known.get("weights") != weights:
        held = {
            None: "one set of weights, without saying which (weights=auto)",
            "unet": "the raw weights (weights=unet)",
        }
        what = held.get(known.get("weights"), f"the average (weights={known.get('weights')})")
        raise Mistakes(f"weights={weights}: {pipeline} holds {what}; use that, or give a run that has both")
    variant = check_weights(f"pipeline={pipeline}", part)
    _check_layout(pipeline, part / UNET_CONFIG)
    with _loading(pipeline), _quiet_diffusers():
        unet, info = UNet2DModel.from_pretrained(part, variant=variant, output_loading_info=True)
        scheduler, assumed = stored_scheduler(pipeline, folder, unet)
    # What an index promises and no shard holds is left without a value.
    if absent := {*info["missing_keys"], *(name for name, weight in unet.named_parameters() if weight.is_meta)}:
        raise Mistakes(f"pipeline={pipeline}: its weights lack {len(absent)} tensors, {sorted(absent)[0]} first")
    notes = (f"{variant} weights" if variant else "", assumed)
    places = (each / PIXEL_VALUES for each in (folder, folder.parent))
    values = next((read_json(place, PixelValues) for place in places if place.is_file()), None)
    return _model(pipeline, unet.float(), scheduler, known, values, ", ".join(filter(None, notes)))


@contextmanager
def _loading(pipeline: str) -> Iterator[None]:
    """What keeps a model from being loaded, in a line: diffusers, torch and safetensors refuse by many kinds."""
    try:
        yield
    except Mistakes:
        raise
    except Exception as error:
        raise Mistakes(printable(f"pipeline={pipeline}: it cannot be loaded: {first_line(error)}")) from None


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without its warnings of pickled weights and of keys that older versions wrote."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _refuse_other_models(pipeline: str, folder: Path, part: Path) -> None:
    """Say what this program is for where the folder holds something else; reads no weights."""
    place = f"pipeline={pipeline}"
    index = read(place, folder / INDEX, Parts) if (folder / INDEX).exists() else {}
    config = read(place, part / UNET_CONFIG, Kind) if (part / UNET_CONFIG).exists() else {}
    name = index.get("_class_name", "")
    kind = config.get("_class_name", index.get("unet", [None, "UNet2DModel"])[1])
    use = f"ddpm-sample is for unconditional pixel models (UNet2DModel); use diffusers' {name or 'own pipelines'}"
    if index and ("unet" not in index or "vqvae" in index or "vae" in index):
        raise Mistakes(f"pipeline={pipeline}: a {name}; {use}")
    if kind != "UNet2DModel":
        raise Mistakes(f"pipeline={pipeline}: a {kind}{f' of a {name}' if name else ''}; {use}")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise Mistakes(f"pipeline={pipeline}: its UNet2DModel wants class labels; {use}")
    if index and not config:
        raise Mistakes(f"pipeline={pipeline}: {INDEX} names a UNet, but there is no {part / UNET_CONFIG}")


def _check_layout(pipeline: str, path: Path) -> None:
    """Have the network that a config describes tried, so that diffusers builds no other."""
    values = read(f"pipeline={pipeline}", path, UNET)
    with _quiet_diffusers():
        reason = config_refusal(values)
    if reason:
        raise Mistakes(printable(f"pipeline={pipeline}: no network of the layout in {path} works: {reason}"))


def _model(
    pipeline: str,
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler,
    known: Mapping[str, Any],
    values: PixelValues | None,
    notes: str = "",
) -> Model:
    """A model of which `step` and `weights` are known, or nothing."""
    kinds = {"unet": "raw weights", "ema": "EMA weights"}
    which = (
        f"step {known['step']:,}, {kinds.get(known['weights'], 'EMA weights, ' + known['weights'])}" if known else ""
    )
    label = ", ".join(filter(None, (pipeline, which, notes)))
    refuse_non_finite(pipeline, unet)
    if values is not None and len(values.low) != unet.config.in_channels:
        channels = f"{len(values.low)} channels, its network of {unet.config.in_channels}"
        raise Mistakes(f"pipeline={pipeline}: {PIXEL_VALUES} is of {channels}; keep each model's own file with it")
    digest = digest_of(unet, noise_scheduler, values)
    unet.eval().requires_grad_(False)
    return Model(label, unet, noise_scheduler, digest, known.get("step"), known.get("weights"), values)


def _download(pipeline: str, revision: str | None) -> Path:
    """The folder of a Hub repository's model in the cache. The configs come first: they may say that it is no use."""
    if lines := list(path_mistakes(pipeline)):
        raise Mistakes(*lines)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    _, problem = find_commit("model", pipeline, revision, key="pipeline", revision_key="revision")

    def fetch(commit: str | None, *patterns: str) -> Path:
        wanted, offline = ["*.json", *patterns], problem is not None
        return Path(snapshot_download(pipeline, revision=commit, allow_patterns=wanted, local_files_only=offline))

    try:
        # Asked for by its name, so that the cache knows what the name means when there is no network.
        folder = fetch(revision)
        part = folder / "unet" if (folder / "unet" / UNET_CONFIG).exists() else folder
        _refuse_other_models(pipeline, folder, part)
        weights = f"{'unet/' if part != folder else ''}diffusion_pytorch_model*"
        fetch(folder.name, f"{weights}.safetensors")
        if not any(part.glob("*.safetensors")):
            fetch(folder.name, f"{weights}.bin")
        return folder
    except LocalEntryNotFoundError:
        raise Mistakes(
            f"pipeline={pipeline}: no such folder; {problem or 'the Hub went away'}, and there is no copy of it in the "
            "cache; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from None
    except GatedRepoError:
        raise
    except HfHubHTTPError as error:
        remedy = "give the same command again, or another revision=…"
        raise Mistakes(f"pipeline={pipeline}: {reason(error)}; {remedy}") from None
