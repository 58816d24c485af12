"""What each network of conf/model takes: parameters, operations and memory. Counted on shapes alone, never measured.

    python benchmarks/models.py

Memory is that of one training step: weights, gradients, Adam's two moments and the average, float32, and what the
forward pass keeps for the backward pass, once in float32 and once as if all of it were bf16. Torch itself, its
workspaces and a GPU's context come on top.
"""

import argparse
from typing import Any

from limits import flops_per_image
from report import tell
from work import build_model

# The network, the side of its images in pixels, their channels, the batch.
MODELS = (
    ("unet_tiny", 16, 1, 64),
    ("unet_small", 64, 3, 64),
    ("unet_32", 32, 3, 64),
    ("unet_64", 64, 3, 64),
    ("unet_128", 64, 3, 16),
    ("unet_128", 128, 3, 16),
    ("unet_256", 256, 3, 4),
)
BYTES_OF_A_PARAMETER = 5 * 4


def kept_bytes(unet: Any, batch_size: int, resolution: int) -> int:
    """Bytes that the forward pass of a network on the meta device keeps for the backward pass."""
    import torch

    kept = {parameter.untyped_storage()._cdata: None for parameter in unet.parameters()}

    def keep(tensor: Any) -> Any:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
        return tensor

    x_t = torch.zeros(batch_size, unet.config.in_channels, resolution, resolution, device="meta", dtype=unet.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(x_t, torch.zeros(batch_size, device="meta"))
    return sum(storage.nbytes() for storage in kept.values() if storage is not None)


def count(model: str, resolution: int, channels: int, batch_size: int) -> dict[str, float]:
    """What one step of a batch takes."""
    import torch

    overrides = [f"model={model}", f"dataset.resolution={resolution}", f"dataset.channels={channels}"]
    unet = build_model(overrides).to("meta")
    parameters = unet.num_parameters()
    flops = flops_per_image(unet, resolution)
    float32 = kept_bytes(unet, batch_size, resolution)
    return {
        "batch_size": batch_size,
        "parameters": parameters,
        "flops_of_1000_steps": 1000 * batch_size * flops,
        "bytes_float32": BYTES_OF_A_PARAMETER * parameters + float32,
        "bytes_bf16": BYTES_OF_A_PARAMETER * parameters
        + kept_bytes(torch.nn.Module.to(unet, torch.bfloat16), batch_size, resolution),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures, rows = {}, []
    for model, resolution, channels, batch_size in MODELS:
        name = f"{model} {resolution} px"
        taken = figures[name] = count(model, resolution, channels, batch_size)
        sizes = f"{taken['bytes_float32'] / 1e9:.1f} GB in float32, {taken['bytes_bf16'] / 1e9:.1f} GB in bf16"
        work = f"{taken['flops_of_1000_steps'] / 1e15:.2f} PFLOP in 1,000 steps of {batch_size} images"
        rows.append((name, f"{taken['parameters'] / 1e6:.2f}M parameters, {sizes}, {work}"))
    tell("models", rows, figures)


if __name__ == "__main__":
    main()
