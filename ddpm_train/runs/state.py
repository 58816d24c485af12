"""What a checkpoint holds besides tensors: where a run stands, what computes it, and what makes it that run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from ddpm_train.runs import checkpoint


@dataclass(frozen=True, kw_only=True)
class ResumedState:
    """The content of a checkpoint's `state.json`; the keys stand in the file in the order of these fields.

    Attributes:
        compute: how steps are computed, the fields of `system.compute.Compute`: settled once, kept on resume.
        device: its name, see `device_name`.
        grad_scaler: the state of the fp16 gradient scaler; empty if there is none.
        optimizer: what the optimizer keeps besides tensors, by name. Older checkpoints do not say.
        identity: what makes the run the run it is, by dotted key, see `identity.py`.
        changes: the accepted changes of the config, each as {"step", "key", "from", "to"}, the oldest first.
        environments: what has computed the run, see `environment.py`. Older checkpoints do not say.
    """

    step: int
    images_seen: int
    compute: dict[str, Any]
    device: str
    micro_batch_size: int
    num_processes: int
    grad_scaler: dict[str, Any]
    optimizer: dict[str, Any]
    identity: dict[str, Any]
    changes: list[dict[str, Any]]
    environments: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; raises KeyError where a key is missing that every checkpoint has."""
        known = {"optimizer": {}, "environments": [], **values}
        return cls(**{field.name: known[field.name] for field in fields(cls)})


def read_state(path: Path) -> ResumedState:
    """The state in a verified checkpoint."""
    return ResumedState.from_json(checkpoint.load_scalars(path))
