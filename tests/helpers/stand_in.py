"""A GPU that is not there: torch takes its tensors for another device's, while their numbers lie on the CPU.

It computes what the CPU computes, but for rounding, and refuses what a real device refuses or gets wrong: a tensor of
the CPU among its own and, as Apple's GPUs, float64 and copies in the background. What the host waits for, or copies,
is noted.

`python -m helpers.stand_in MODULE ARGUMENTS…` runs one of the programs on it, and tells what each training step and
each batch of samples made the host wait for.
"""

import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_NAME = "stand_in"
# The host needs their result to go on: a number, or how many elements there are.
_WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2")
# A scalar of the CPU may stand among a device's tensors, but not in these.
_NO_SCALARS = ("cat", "stack", "gather", "index_select", "embedding")


class OnDevice(Tensor):
    """A tensor of the device; `host` holds its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> "OnDevice":
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made: OnDevice = Tensor._make_wrapper_subclass(cls, host.shape, device=torch.device(_NAME, 0), **layout)
        made.host = host
        return made

    # torch's own refuse subclasses.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def storage(self) -> Any:
        return self.host.storage()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def __repr__(self) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return _compute(operator, arguments, options or {})


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device have no other tensor to tell so."""

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return _compute(operator, arguments, options or {})


class _Module(_DummyBackendModule):
    """What `torch.cuda` is to CUDA."""

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 2**30, 2**31

    def synchronize(self) -> None:
        noted["waits for everything"] += 1


noted: Counter[str] = Counter()


def _compute(operator: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """Compute on the CPU, after the checks of a device."""
    tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
    mine = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    target = options.get("device")
    if not mine and not _is_mine(target):
        return operator(*arguments, **options)
    name = operator.overloadpacket.__name__
    if name == "copy_":
        target = arguments[0].device
    to_device = target is None or _is_mine(target)
    if name in ("copy_", "_to_copy"):
        if not to_device or len(mine) < len(tensors):
            noted["copies to the device" if to_device else "copies from the device"] += 1
            if options.get("non_blocking") or arguments[2:] == (True,):
                raise RuntimeError(f"{name}: the host does not wait for this copy, and its memory is not pinned")
    else:
        _check(name, mine, others=[tensor for tensor in tensors if not isinstance(tensor, OnDevice)])
    on_host = tree_map(lambda leaf: leaf.host if isinstance(leaf, OnDevice) else leaf, (arguments, options))
    computed = operator(*on_host[0], **on_host[1] | ({"device": torch.device("cpu")} if "device" in options else {}))
    if not to_device:
        return arguments[0] if name == "copy_" else computed
    known = {id(tensor.host): tensor for tensor in mine}
    return tree_map(lambda leaf: _wrapped(leaf, known) if isinstance(leaf, Tensor) else leaf, computed)


def _check(name: str, mine: list[OnDevice], others: list[Tensor]) -> None:
    """Refuse tensors of the CPU, and note what the host waits for."""
    if mine and any(tensor.dim() or name in _NO_SCALARS for tensor in others):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {_NAME} and cpu")
    masks = name in ("index", "index_put", "index_put_") and any(tensor.dtype == torch.bool for tensor in mine[1:])
    if name in _WAITING or masks:
        noted[f"waits for {name}"] += 1


def _wrapped(host: Tensor, known: dict[int, OnDevice]) -> OnDevice:
    if host.dtype == torch.float64:
        raise TypeError("the device has no float64")
    return known[id(host)] if id(host) in known else OnDevice(host)


def _is_mine(device: Any) -> bool:
    return device is not None and torch.device(device).type == _NAME


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """The device; there is no way back."""
    _setup_privateuseone_for_python_backend(_NAME, backend_module=_Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter becomes one of another class
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` is made on the CPU and copied
    torch.inference_mode = torch.no_grad  # it passes subclasses by
    device = torch.device(_NAME, 0)
    with _Factories():
        yield device


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tells on stdout what the host waited for, or copied, in each call."""

    def watch(*arguments: Any, **options: Any) -> Any:
        noted.clear()
        result = function(*arguments, **options)
        print(f"{function.__name__}: {dict(sorted(noted.items()))}", flush=True)
        return result

    return watch


def main() -> None:
    from ddpm_train.sampling.engine import Engine
    from ddpm_train.training.loop import Trainer

    Trainer.train_step = watched(Trainer.train_step)  # type: ignore[method-assign]
    Engine.denoised = watched(Engine.denoised)  # type: ignore[method-assign]
    with stand_in() as device:
        PartialState().device = device
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
