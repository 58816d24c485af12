"""What bounds training: operations for each image, and how many a second the device does in a matrix product.

    python benchmarks/limits.py

Counts the networks of conf/model at their usual resolutions; `throughput.py` uses the same functions for its case.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from report import tell
from work import build_model

MODELS = (("unet_32", 32), ("unet_64", 64), ("unet_128", 64), ("unet_128", 128), ("unet_256", 256))


def flops_per_image(unet: Any, resolution: int) -> int:
    """Operations of one image forward and backward; a multiplication and its addition count as two."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x_t = torch.zeros(1, unet.config.in_channels, resolution, resolution, device="meta")
    # The counter knows matrix products, not every device's fused attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet.to("meta")(x_t, torch.zeros(1, device="meta")).sample.square().mean().backward()
    return counter.get_total_flops()


def peak_flops() -> dict[str, float]:
    """Operations a second in matrix products, by the name of the precision."""
    return {"no": _matmul_flops("float32"), "bf16": _matmul_flops("bfloat16")}


def _matmul_flops(dtype: str) -> float:
    """The best of several square matrix products. fp32 as torch has it by default: exact, where convolutions may not
    be (TF32), so that a share of it can exceed 1 on such a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    side, products = (8192, 10) if cuda else (2048, 2)
    matrix = torch.randn(side, side, device="cuda" if cuda else "cpu", dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(6):
        started = time.monotonic()
        for _ in range(products):
            matrix @ matrix
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (time.monotonic() - started) / products)
    return 2 * side**3 / best


def tell_peak(flops: dict[str, float]) -> tuple[str, str]:
    return "matrix products", f"fp32 {flops['no'] / 1e12:.3f}, bf16 {flops['bf16'] / 1e12:.3f} TFLOP/s"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    peak = peak_flops()
    figures: dict[str, Any] = {"peak_flops": peak, "flops_per_image": {}}
    rows = [tell_peak(peak)]
    for model, resolution in MODELS:
        unet = build_model([f"model={model}", f"dataset.resolution={resolution}", "dataset.channels=3"])
        flops = flops_per_image(unet, resolution)
        figures["flops_per_image"][f"{model} {resolution} px"] = flops
        rows.append(
            (
                f"{model}, {resolution} px",
                f"{flops / 1e9:.1f} GFLOP an image; at most {peak['bf16'] / flops:,.0f} images/s in bf16",
            )
        )
    tell(Path(__file__).stem, rows, figures)


if __name__ == "__main__":
    main()
