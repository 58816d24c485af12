"""Snapshots of a run's averages, of which other averages are made afterwards. They stay when checkpoints go. No torch.

snapshots/step_00000100/
  ema.safetensors …           the averages in the checkpoint of that step: links, which take no room while that stays
  state.json manifest.json    as in a checkpoint
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import SNAPSHOTS
from ddpm_train.system.files import cleared, link_or_copy, move_or_remove, replace_folder

_LEFT_OUT = ("unet.safetensors", "optimizer.safetensors", "helpers.safetensors")


def until(run: Path, step: int) -> dict[int, Path]:
    """Step -> snapshot of a run up to a step, the oldest first; unverified."""
    return {at: path for at, path in checkpoint.by_step(run / SNAPSHOTS).items() if at <= step}


def keep(path: Path, every_steps: int) -> None:
    """Keep the averages of a published checkpoint, and of those before it, where their steps are multiples of this.

    Earlier ones may lack theirs: a save may have been killed here, or the disk may have refused it.
    """
    run = path.parent.parent
    for step, source in checkpoint.by_step(path.parent).items():
        target = run / SNAPSHOTS / source.name
        if step % every_steps == 0 and step <= checkpoint.step_of(path) and not target.exists():
            manifest = checkpoint.read_manifest(source)
            files = {name: file for name, file in manifest.files.items() if name not in _LEFT_OUT}
            with replace_folder(target) as staging:
                for name in files:
                    link_or_copy(source / name, staging / name)
                kept = asdict(checkpoint.Manifest(manifest.format, step, files))
                (staging / checkpoint.MANIFEST).write_text(json.dumps(kept, indent=1))


def verify(path: Path, step: int) -> Path:
    """Check a snapshot whole and return it; raises `BadCheckpoint`."""
    return checkpoint.verify(path, step, needed=(checkpoint.STATE,))


def go_on_from(path: Path, step: int, run: Path) -> None:
    """Have those snapshots alone that lead to a checkpoint, the run's own or another's, and not to what came after."""
    source = path.parent.parent
    if source.resolve() != run.resolve():
        remove(run, after=-1)
        for snapshot in until(source, step).values():
            with replace_folder(run / SNAPSHOTS / snapshot.name) as staging:
                for file in snapshot.iterdir():
                    link_or_copy(file, staging / file.name)
    remove(run, after=step)


def remove(run: Path, after: int) -> None:
    """Remove the snapshots after a step, and what killed programs have left."""
    doomed = [path for step, path in checkpoint.by_step(run / SNAPSHOTS).items() if step > after]
    for path in doomed:  # renamed first: one that is half removed must not look like one
        move_or_remove(path, cleared(path.with_name(f".{path.name}.old")))
    for left in (run / SNAPSHOTS).glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)
