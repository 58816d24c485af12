"""What a checkpoint holds besides tensors: where a run stands, what computes it, and what makes it that run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.runs import checkpoint
from ddpm_train.runs.checkpoint import BadCheckpoint
from ddpm_train.system.failures import one_line


@dataclass(frozen=True, kw_only=True)
class ResumedState:
    """The content of a checkpoint's `state.json`; the keys stand in the file in the order of these fields.

    Attributes:
        compute: how steps are computed, the fields of `system.compute.Compute`: settled once, kept on resume.
        device: its name, see `device_name`.
        grad_scaler: the state of the fp16 gradient scaler; empty if there is none.
        optimizer: what the optimizer keeps besides tensors, by name. Older checkpoints do not say.
        identity: what makes the run the run it is, by dotted key, see `identity.py`.
        changes: those of the config that change what the run computes, its length among them, each as {"step", "key",
            "from", "to"}, the oldest first.
        max_steps: the length of the run, also where epochs give it. Older checkpoints do not say.
        environments: what has computed the run, see `environment.py`. Older checkpoints do not say.
    """

    step: int
    images_seen: int
    compute: dict[str, str | bool]
    device: str
    micro_batch_size: int
    num_processes: int
    grad_scaler: dict[str, Any]
    optimizer: dict[str, bool | int | float | str | None] = field(default_factory=dict)
    identity: dict[str, Any]
    changes: list[dict[str, Any]]
    max_steps: int | None = None
    environments: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self)


def read_state(path: Path) -> ResumedState:
    """The state in a checkpoint's folder; raises BadCheckpoint if it cannot be read, or is none."""
    try:
        return read_json(path / checkpoint.STATE, ResumedState)
    except (BadFile, OSError) as error:
        raise checkpoint.unreadable(error, f"{checkpoint.STATE} cannot be read ({one_line(error)})") from None


def verify(path: Path, step: int | None = None) -> Path:
    """Check a checkpoint whole: its files, see `checkpoint.verify`, and what is in them, whoever wrote its manifest.

    Raises:
        BadCheckpoint: see there; or its state or its tensors cannot be read.
    """
    checkpoint.verify(path, step)
    if (state := read_state(path)).step != checkpoint.read_manifest(path).step:
        raise BadCheckpoint(f"{checkpoint.STATE} is of step {state.step}")
    checkpoint.check_tensors(path)
    return path
