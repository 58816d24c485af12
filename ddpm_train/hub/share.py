"""What of a run is shared, by allow-list: the folder that a push makes the content of a repository.

README.md  samples.png           the model card and the newest grid
model_index.json  unet/  scheduler/   a DDPMPipeline, which plain diffusers loads
config.yaml  metrics.jsonl       the recipe, without paths; one record a step
last-checkpoint/                 hub.strategy=checkpoint: what a resume needs
checkpoints/step_00001000/ …     hub.strategy=all_checkpoints: the same of every checkpoint on the disk
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm_train.hub.card import Facts, model_card
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, EVALUATION, RECORDS, SAMPLES, SCORES, config_yaml, read_records
from ddpm_train.runs.state import read_state

LAST = "last-checkpoint"
# Folders of the repository that are the newest push's alone. Of all checkpoints there, none is ever removed.
OWNED = ("unet", "scheduler", LAST)
_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Shared:
    """A run as it is shared.

    Attributes:
        values: its config as plain values.
        pipeline_files: the small files of its DDPMPipeline, see `model.pipeline_files`.
        licence: finds out that of its dataset, if it is known.
    """

    run: Path
    values: Mapping[str, Any]
    pipeline_files: Mapping[str, str]
    licence: Callable[[], str | None]
    repo_id: str
    strategy: str

    def stage(self, path: Path, folder: Path) -> None:
        """Fill a new `folder` with what a push of the checkpoint at `path` brings.

        Checkpoints never change and are linked; what the run still writes is copied, up to the checkpoint's step.

        Raises:
            OSError: a file is gone (pruned meanwhile), or the disk does not take the copy.
        """
        step = checkpoint.step_of(path)
        state = read_state(path)
        weights = "ema" if (path / "ema.safetensors").exists() else "unet"
        for name, text in self.pipeline_files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        _link(path / f"{weights}.safetensors", folder / _WEIGHTS)
        (folder / CONFIG).write_bytes(config_yaml(public_config(self.values)))
        records = list(read_records(self.run, step))
        (folder / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
        if grid := _newest(self.run / SAMPLES, ".png", step):
            shutil.copyfile(grid, folder / "samples.png")
        for place, source in self._checkpoints(path).items():
            share_checkpoint(source, folder / place)
        facts = Facts(
            values=public_config(self.values),
            state=state,
            weights=weights,
            records=records,
            scores=_scores(self.run / EVALUATION, step),
            licence=self.licence(),
            repo_id=self.repo_id,
            has_grid=grid is not None,
            resumable=self.strategy in ("checkpoint", "all_checkpoints"),
        )
        (folder / "README.md").write_text(model_card(facts))

    def _checkpoints(self, path: Path) -> dict[str, Path]:
        if self.strategy == "checkpoint":
            return {LAST: path}
        if self.strategy == "all_checkpoints":
            return {f"{CHECKPOINTS}/{one.name}": one for one in checkpoint.published(path.parent)}
        return {}


def share_checkpoint(path: Path, target: Path) -> None:
    """Link a checkpoint, but for its state: that holds the config, which is shared without paths."""
    target.mkdir(parents=True)
    for file in path.iterdir():
        if file.name not in (checkpoint.STATE, checkpoint.MANIFEST):
            _link(file, target / file.name)
    private = read_state(path)
    public = replace(private, identity=public_identity(private.identity))
    state = json.dumps(public.to_json(), indent=1).encode()
    (target / checkpoint.STATE).write_bytes(state)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.STATE] = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (target / checkpoint.MANIFEST).write_text(json.dumps(manifest, indent=1))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk that has no hard links
        shutil.copyfile(source, target)


def _scores(folder: Path, step: int) -> list[dict[str, Any]]:
    """The newest evaluation's scores, and those measured by hand of the weights of `step`."""
    during = _newest(folder, ".json", step)
    by_hand = folder / SCORES
    scores = json.loads(during.read_text())["scores"] if during else []
    if by_hand.exists():
        measured = json.loads(by_hand.read_text())["scores"]
        scores += [score for score in measured if score["depends_on"].get("step") in (step, None)]
    return list({score["name"]: score for score in scores}.values())


def _newest(folder: Path, suffix: str, step: int) -> Path | None:
    """The newest file step_NNNNNNNN with `suffix`, up to a step."""
    found = checkpoint.by_step(folder, suffix)
    return found.get(max((at for at in found if at <= step), default=-1))


# Where a run lies, and how it was asked to start, say nothing to others, or say too much.
_PRIVATE: dict[str, Any] = {
    "resume": "auto",
    "allow_change": [],
    "dataset.cache_dir": None,
    "dataset.num_workers": None,
    "checkpoint.mirror": None,
    "hub.push": False,
    "hub.repo_id": None,
    "hub.private": None,
    "hub.revision": None,
}


def public_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config without what only its machine or its owner knows; it runs again elsewhere."""
    public: dict[str, Any] = {}
    for key, value in values.items():
        if key == "tracker":  # a tracker's arguments name projects, people and folders
            public[key] = {name: {} if chosen is not None else None for name, chosen in value.items()}
        elif isinstance(value, Mapping):
            public[key] = {name: _public(f"{key}.{name}", item) for name, item in value.items()}
        else:
            public[key] = _public(key, value)
    public["output_dir"] = f"outputs/{values['name']}"
    return public


def public_identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's identity, whose keys are dotted, without the same."""
    kept = {key: value for key, value in flat.items() if key not in (*_PRIVATE, "output_dir")}
    return {
        key: value
        for key, value in kept.items()
        if key == "model.pretrained"  # a name, and part of what the run is
        or not (key.startswith(("tracker.", "hub.")) or (isinstance(value, str) and is_local(value)))
    }


def _public(key: str, value: Any) -> Any:
    if key in _PRIVATE:
        return _PRIVATE[key]
    if isinstance(value, str) and is_local(value):
        return "???"  # Hydra's word for what the user has to say
    return value


def is_local(text: str) -> bool:
    """Whether a value is a path on this machine. A name such as owner/name is one of the Hub's."""
    is_path = re.match(r"[./~\\]|[A-Za-z]:[\\/]|[a-z0-9+]+://", text) is not None or text.count("/") > 1
    return is_path or os.path.isabs(text) or ("/" in text and Path(text).exists())
