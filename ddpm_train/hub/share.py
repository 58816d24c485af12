"""What of a run is shared, by allow-list: the folder that a push makes the content of a repository.

README.md  samples.png           the model card and the newest grid
model_index.json  unet/  scheduler/   a DDPMPipeline, which plain diffusers loads
config.yaml  metrics.jsonl       the recipe, without paths; one record a step
last-checkpoint/                 hub.strategy=checkpoint: what a resume needs
checkpoints/step_00001000/ …     hub.strategy=all_checkpoints: the same of every checkpoint on the disk
snapshots/step_00000100/ …       with either: what other averages are made of, up to the checkpoint
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.parts import Hub
from ddpm_train.config.text import holds_secret
from ddpm_train.hub.card import model_card
from ddpm_train.hub.push import LAST, Push
from ddpm_train.report.certificate import Certificate, certificate
from ddpm_train.report.stored import Results, Score
from ddpm_train.runs import checkpoint, snapshots
from ddpm_train.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    RECORDS,
    SAMPLES,
    SCORES,
    SNAPSHOTS,
    config_yaml,
    cut_records,
    read_records,
)
from ddpm_train.runs.state import ResumedState, read_state
from ddpm_train.system.files import link_or_copy

_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Shared:
    """A run as it is shared.

    Attributes:
        values: its config as plain values.
        hub: where to and how it is pushed; its `repo_id` is known.
        pipeline_files: the small files of its DDPMPipeline, see `pipeline_files`.
        licence: finds out that of its dataset, if it is known.
    """

    run: Path
    values: Mapping[str, Any]
    hub: Hub
    pipeline_files: Mapping[str, str]
    licence: Callable[[], str | None]

    def stage(self, path: Path, folder: Path) -> Push:
        """Fill a new `folder` with what a push of the checkpoint at `path` brings; returns the push.

        Checkpoints never change and are linked; what the run still writes is copied, up to the checkpoint's step.

        Raises:
            OSError: a file is gone (pruned meanwhile), or the disk does not take the copy.
        """
        step, hub, repo_id = checkpoint.step_of(path), self.hub, str(self.hub.repo_id)
        config = _public_config(self.values)
        weights = "ema" if (path / "ema.safetensors").exists() else "unet"
        for name, text in self.pipeline_files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        link_or_copy(path / f"{weights}.safetensors", folder / _WEIGHTS)
        (folder / CONFIG).write_bytes(config_yaml(config))
        if (self.run / RECORDS).exists():
            shutil.copyfile(self.run / RECORDS, folder / RECORDS)
            cut_records(folder / RECORDS, step)
        if grid := _newest(self.run / SAMPLES, ".png", step):
            shutil.copyfile(grid, folder / "samples.png")
        checkpoints = {LAST: path} if hub.strategy == "checkpoint" else {}
        if hub.strategy == "all_checkpoints":
            checkpoints = {f"{CHECKPOINTS}/{one.name}": one for one in checkpoint.published(path.parent)}
        if checkpoints:
            kept = snapshots.until(self.run, step).values()
            checkpoints |= {f"{SNAPSHOTS}/{one.name}": one for one in kept}
        for place, source in checkpoints.items():
            _share_checkpoint(source, folder / place)
        scores = _scores(self.run / EVALUATION, step)
        card = model_card(
            config=config,
            state=read_state(path),
            weights=weights,
            records=read_records(folder),
            scores=[asdict(score) for score in scores],
            certificate=_certificate(self.run / EVALUATION, step, scores),
            licence=self.licence(),
            repo_id=repo_id,
            has_grid=grid is not None,
            resumable=bool(checkpoints),
        )
        (folder / "README.md").write_text(card, "utf-8")
        revision, retry_seconds = hub.revision or "main", 60 * hub.retry_minutes
        return Push(str(folder), f"Step {step:,}", repo_id, hub.private, revision, retry_seconds, hub.stall_seconds)


def _share_checkpoint(path: Path, target: Path) -> None:
    """Link a checkpoint except its state, which holds the config: that is shared without paths."""
    target.mkdir(parents=True)
    for file in path.iterdir():
        if file.name not in (checkpoint.STATE, checkpoint.MANIFEST):
            link_or_copy(file, target / file.name)
    state = json.dumps(_public_state(read_state(path)).to_json(), indent=1).encode()
    (target / checkpoint.STATE).write_bytes(state)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.STATE] = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (target / checkpoint.MANIFEST).write_text(json.dumps(manifest, indent=1))


def _scores(folder: Path, step: int) -> list[Score]:
    """The newest evaluation's scores, and those measured by hand of the weights of `step`."""
    during = _newest(folder, ".json", step)
    scores = _read_results(during).scores if during else []
    by_hand = _read_results(folder / SCORES).scores
    scores += [score for score in by_hand if score.depends_on.get("step") in (step, None)]
    return list({score.name: score for score in scores}.values())


def _certificate(folder: Path, step: int, scores: list[Score]) -> Certificate | None:
    """Whether the weights of `step` copy their training images."""
    copying = _read_results(folder / SCORES).copying or {}
    return certificate(copying if copying.get("step") == step else {}, scores)


def _read_results(path: Path) -> Results:
    """What a file of scores holds, if it is there; a damaged one is named in the report."""
    try:
        return read_json(path, Results)
    except (FileNotFoundError, BadFile):
        return Results()


def _newest(folder: Path, suffix: str, step: int) -> Path | None:
    """The newest file step_NNNNNNNN with `suffix`, up to a step."""
    found = checkpoint.by_step(folder, suffix)
    return found.get(max((at for at in found if at <= step), default=-1))


# Where a run lies, and how it was asked to start, say nothing to others, or say too much. This stands in its place.
_PRIVATE: dict[str, Any] = {"resume": "auto", "allow_change": [], "hub.push": False}
_PRIVATE |= dict.fromkeys(("dataset.cache_dir", "dataset.num_workers", "checkpoint.mirror"))
_PRIVATE |= dict.fromkeys(("hub.repo_id", "hub.private", "hub.revision"))
# Sources of which the path is a name that others know, too.
_NAMED_SOURCES = ("embedded", "hub")


def _public_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config without what only its machine or its owner knows; it runs again elsewhere."""
    public = {key: _public(key, value) for key, value in values.items()}
    # A tracker's arguments name projects, people and folders.
    public["tracker"] = {name: {} if chosen is not None else None for name, chosen in values["tracker"].items()}
    public["output_dir"] = f"outputs/{values['name']}"
    if _has_own_images(values["dataset"]["source"], values["dataset"]["path"]):
        public["dataset"]["path"] = "???"
    return public


def _public_state(state: ResumedState) -> ResumedState:
    """A checkpoint's state without the same: its identity, whose keys are dotted, what was changed, and how it ran."""
    identity = {
        key: value
        for key, value in state.identity.items()
        if not (key in (*_PRIVATE, "output_dir") or key.startswith(("tracker.", "hub.")) or _is_local(value))
    }
    if _has_own_images(identity.get("dataset.source"), identity.get("dataset.path", "")):
        identity.pop("dataset.path", None)
    if began := state.identity.get("model.pretrained"):  # part of what the run is, but not where it lay
        identity["model.pretrained"] = Path(began).name if _is_local(began) else began
    changes = [{key: _public(change["key"], value) for key, value in change.items()} for change in state.changes]
    # A command line says all that is left out here.
    said = [{key: value for key, value in each.items() if key != "command"} for each in state.environments]
    return replace(state, identity=identity, changes=changes, environments=_public("", said))


def _public(key: str, value: Any) -> Any:
    """A value, at any depth, as others may see it."""
    if key in _PRIVATE:
        return _PRIVATE[key]
    if isinstance(value, Mapping):
        return {name: _public(f"{key}.{name}" if key else name, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(key, item) for item in value]
    return "???" if _is_local(value) else value  # Hydra's word for what the user has to say


def _has_own_images(source: Any, path: str) -> bool:
    """Whether a dataset is of this machine alone."""
    return source not in _NAMED_SOURCES or (source == "hub" and os.path.exists(os.path.expanduser(path)))


def _is_local(text: Any) -> bool:
    """Whether a value is a path on this machine, or a secret. A name such as owner/name is one of the Hub's."""
    if not isinstance(text, str):
        return False
    is_path = re.match(r"[./~\\]|[A-Za-z]:[\\/]|[a-z0-9+]+://", text) is not None or text.count("/") > 1
    return is_path or os.path.isabs(text) or holds_secret(text) or ("/" in text and os.path.exists(text))
