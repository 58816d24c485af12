"""What a training step takes of memory and work, counted on torch's meta device, which has shapes and no memory."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ddpm_train.config.parts import Resolution


@dataclass(frozen=True)
class Footprint:
    """One forward and backward pass of a batch, in one precision.

    Attributes:
        parameters: of the network, as a number.
        weight_bytes: of the network, in that precision.
        peak_bytes: the most that is alive at one moment: weights, what the backward pass needs, gradients.
        moved_bytes: what all kernels read and write, each its own tensors once.
        flops: operations for each image; a multiplication and its addition count as two.
    """

    batch_size: int
    parameters: int
    weight_bytes: int
    peak_bytes: int
    moved_bytes: int
    flops: int


def footprint(
    build: Callable[[], UNet2DModel], batch_size: int, resolution: Resolution, dtype: torch.dtype = torch.float32
) -> Footprint:
    """Count a step of a network, all of it in one dtype.

    Attention is counted as separate matrix products. A device's fused kernel for it keeps less.

    Args:
        build: makes the network on the device that is torch's default then.
        resolution: (height, width) of its images.
    """
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        unet = build()
        nn.Module.to(unet, dtype=dtype)  # not ModelMixin's `to`, which warns

        def step(num_images: int) -> None:
            x_t = torch.empty(num_images, unet.config.in_channels, *resolution, dtype=dtype)
            unet(x_t, torch.zeros(num_images, dtype=torch.long)).sample.square().mean().backward()

        # Not together with what counts bytes: it holds on to tensors.
        with FlopCounterMode(display=False) as operations:
            step(1)
        unet.zero_grad()
        weights = [parameter.detach() for parameter in unet.parameters()]
        with _Alive(weights) as alive:
            step(batch_size)
    return Footprint(
        batch_size=batch_size,
        parameters=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.nbytes for weight in weights),
        peak_bytes=alive.peak_bytes,
        moved_bytes=alive.moved_bytes,
        flops=operations.get_total_flops(),
    )


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that its operations make, as long as they live."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.peak_bytes = self.moved_bytes = self._bytes = 0
        self._known: set[int] = set()
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, made))
            self.moved_bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return
        self._known.add(place)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._remove, place, size)

    def _remove(self, place: int, size: int) -> None:
        self._known.remove(place)
        self._bytes -= size
