"""What each network of conf/model takes: parameters, operations and memory. Computed from shapes alone, never measured.

    python benchmarks/models.py

Writes results/models.json and the tables of docs/sizes.md. It computes as `ddpm-train --plan` does, which see.
"""

import argparse
from pathlib import Path
from typing import Any

from report import tell
from work import config_of

PAGE = Path(__file__).parents[1] / "docs/sizes.md"
TABLES = "<!-- written by benchmarks/models.py -->\n"
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
GPUS_SHOWN = ("T4", "RTX 4090", "A100", "H100 SXM")


def count(model: str, resolution: int, channels: int, batch_size: int) -> dict[str, Any]:
    """What one step of a batch takes."""
    from ddpm_train.training.plan import GPUS, WAYS, images_per_second, need_of, step_of

    keys = (f"model={model}", f"dataset.resolution={resolution}", f"dataset.channels={channels}")
    config = config_of([*keys, f"train.batch_size={batch_size}"])
    steps = {name: step_of(config, batch_size, *way) for name, way in WAYS.items()}
    step = steps["bf16"]
    return {
        "batch_size": batch_size,
        "parameters": step.parameters,
        "flops_of_1000_steps": 1000 * batch_size * step.flops,
        "bytes": {name: need_of(config, each).of(batch_size) for name, each in steps.items()},
        "images_per_second_at_most": {gpu.name: images_per_second(gpu, config, step) for gpu in GPUS},
    }


def tables(figures: dict[str, dict[str, Any]]) -> str:
    """As Markdown."""
    ways = list(next(iter(figures.values()))["bytes"])
    memory = [["Network, images", "Parameters", "Batch", *ways]]
    rates = [["Network, images", "GFLOP an image", *GPUS_SHOWN]]
    for name, taken in figures.items():
        gigabytes = [f"{taken['bytes'][way] / 1e9:.1f} GB" for way in ways]
        memory.append([name, f"{taken['parameters'] / 1e6:.2f}M", str(taken["batch_size"]), *gigabytes])
        each = taken["flops_of_1000_steps"] / 1000 / taken["batch_size"] / 1e9
        rates.append([name, f"{each:.1f}", *(f"{taken['images_per_second_at_most'][gpu]:,.0f}" for gpu in GPUS_SHOWN)])
    return f"## Memory of a step\n\n{_table(memory)}\n## Images a second, at most\n\n{_table(rates)}"


def _table(rows: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join([head, "|---" * len(rows[0]), "|\n", *rest])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures = {f"{model} {resolution} px": count(model, resolution, *rest) for model, resolution, *rest in MODELS}
    rows = [
        (
            name,
            f"{taken['parameters'] / 1e6:.1f}M parameters, {taken['bytes']['float32'] / 1e9:.1f} GB in float32, "
            f"{taken['bytes']['bf16'] / 1e9:.1f} GB in bf16, "
            f"{taken['flops_of_1000_steps'] / 1e15:.2f} PFLOP in 1,000 steps of {taken['batch_size']} images",
        )
        for name, taken in figures.items()
    ]
    before, mark, _ = PAGE.read_text("utf-8").partition(TABLES)
    PAGE.write_text(before + mark + tables(figures), "utf-8")
    tell("models", rows, figures)


if __name__ == "__main__":
    main()
