"""All that an optimizer knows of the steps behind it: what goes into a checkpoint comes out of it, or nothing goes in.

torch's `state_dict` is not enough. An optimizer may nest in it what it keeps (bitsandbytes), `load_state_dict` makes
floating-point numbers of integers, and the values that an optimizer changes in its groups look like settings.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddpm_train.config.foreign import printable
from ddpm_train.runs.checkpoint import BadCheckpoint
from ddpm_train.system.exit_codes import NOT_SAVED, CannotGoOn

Layout: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]
# Of a group's values these are not state: the first is the model's, the second is set at each step.
_NO_STATE = ("params", "lr")


class NotCaptured(CannotGoOn):
    """An optimizer keeps something that a checkpoint cannot hold."""

    exit_code = NOT_SAVED


class OptimizerState:
    """What an optimizer keeps: "INDEX.NAME" of the parameter of that index, "group INDEX.NAME" of a group.

    Args:
        optimizer: as it was built, before its first step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = [dict(group) for group in optimizer.param_groups]

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, which stay the optimizer's own, and the scalars (numbers, truth values, texts, None).

        Raises:
            NotCaptured: there is something else.
        """
        kept: dict[str, Any] = {}
        of_parameters = dict(self._optimizer.state)
        for index, (parameter, _) in enumerate(self._parameters()):
            kept |= {f"{index}.{name}": value for name, value in of_parameters.pop(parameter, {}).items()}
        for index, (group, settings) in enumerate(zip(self._optimizer.param_groups, self._settings, strict=True)):
            for name, value in group.items():
                changed = isinstance(value, Tensor) or name not in settings or value != settings[name]
                if name not in _NO_STATE and changed:
                    kept[f"group {index}.{name}"] = value
        tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
        scalars = {name: value for name, value in kept.items() if name not in tensors}
        strange = [name for name, value in scalars.items() if not isinstance(value, bool | int | float | str | None)]
        if strange or of_parameters:
            what = f"{strange[0]}, a {type(scalars[strange[0]]).__name__}" if strange else "more than its parameters'"
            raise NotCaptured(
                f"optimizer: {type(self._optimizer).__name__} keeps state that a checkpoint cannot hold ({what}); "
                "it would be lost at the next start, so choose another optimizer"
            )
        return tensors, scalars

    def allocate(self, layout: Layout, scalars: Mapping[str, Any]) -> None:
        """Take over the scalars that `capture` returned, and make room for the tensors.

        Raises:
            BadCheckpoint: some are for a parameter or a group that is not here.
        """
        for name, (shape, dtype) in layout.items():
            keeps, key, parameter, group = self._place(name)
            keeps[key] = _room(shape, dtype, key, parameter, group)
        for name, value in scalars.items():
            keeps, key, _, _ = self._place(name)
            keeps[key] = value

    def _place(self, name: str) -> tuple[dict[str, Any], str, Tensor, dict[str, Any]]:
        """Where the optimizer keeps something, under which key, and the parameter and the group that it is for."""
        try:
            place, key = name.split(".", 1)
            if place.startswith("group "):
                group = self._optimizer.param_groups[int(place.removeprefix("group "))]
                return group, key, group["params"][0], group
            parameter, group = self._parameters()[int(place)]
        except (ValueError, IndexError):
            raise BadCheckpoint(printable(f"optimizer: nothing here has {name}")) from None
        return self._optimizer.state[parameter], key, parameter, group

    def _parameters(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """The parameters with their groups, in the order in which torch counts them."""
        return [(parameter, group) for group in self._optimizer.param_groups for parameter in group["params"]]


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Shape and dtype of each."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _room(shape: tuple[int, ...], dtype: torch.dtype, key: str, like: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Where the optimizer itself would make it: beside the parameter and laid out like it; torch's step counts."""
    if tuple(like.shape) == shape:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
    return torch.empty(shape, dtype=dtype, device="cpu" if on_host else like.device)
