"""Images a second of this project's program against the loops that people use today, around the same network.

    python benchmarks/throughput.py [--images DIR] [--steps 60] [--repeats 3] [--resolution 64] [--model small]

The peers stand in `peers.py`. Every contestant is a process of its own; they take turns, and the ratios are medians
over the turns. Counted are the steps after a warm-up, with the prepared images in place (`datasets` keeps its own).
Without --images it generates JPEGs of a photograph's size.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import PACKAGE, Work, model_overrides, write_images, write_work
from report import tell

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
WINDOW = 10  # steps; the first one is the warm-up
LABELS = {
    "ours": "ours",
    "tutorial": "diffusers' example",
    "tuned": "the same, tuned",
    "package": "denoising-diffusion-pytorch",
}


def run(command: list[str], log: Path) -> int:
    """Run a command; returns the peak memory of its process (or of its largest worker), in bytes."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


def fresh(work: Work) -> Path:
    """The folder to work in, without the run of the turn before."""
    shutil.rmtree(Path(work.scratch) / "run", ignore_errors=True)
    return Path(work.scratch)


def peer(name: str, work: Work) -> dict[str, Any]:
    scratch = fresh(work)
    log = scratch / f"{name}.log"
    run([sys.executable, str(ROOT / "benchmarks/peers.py"), name, str(write_work(work, scratch / "work.json"))], log)
    return json.loads(log.read_text().splitlines()[-1])


def program(work: Work) -> dict[str, Any]:
    """This project's own program, as a user starts it; its rate from its own record."""
    scratch = fresh(work)
    peak = run([sys.executable, str(ROOT / "train.py"), *work.overrides], scratch / "ours.log")
    records = [json.loads(line) for line in (scratch / "run" / "metrics.jsonl").read_text().splitlines()]
    # Every record of a window carries the window's rate.
    rates = [record["images_per_second"] for record in records if record["step"] > work.warmup]
    return {"images_per_second": statistics.harmonic_mean(rates), "peak_rss": peak}


def overrides_of(arguments: argparse.Namespace, images: Path, scratch: Path) -> list[str]:
    """The example's recipe in this project's words."""
    return [
        *model_overrides(arguments.model),
        *("dataset=imagefolder", f"dataset.path={images}", f"dataset.resolution={arguments.resolution}"),
        *("dataset.validation_fraction=0", "dataset.random_flip=true", f"dataset.cache_dir={scratch / 'cache'}"),
        *("noise_scheduler=linear", "ema=warmup", "evaluation=none", f"train.batch_size={arguments.batch_size}"),
        *("optimizer.lr=1e-4", "optimizer.betas=[0.95,0.999]", "optimizer.weight_decay=1e-6"),
        *(f"train.max_steps={arguments.steps}", f"train.log_every_steps={WINDOW}", "checkpoint.every_steps=null"),
        *("resume=never", f"output_dir={scratch / 'run'}"),
    ]


def take_turns(contestants: dict[str, Callable[[], dict[str, Any]]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name, contestant in contestants.items():
            turns[name].append(contestant())
            print(f"turn {repeat + 1}, {name}: {turns[name][-1]['images_per_second']:.1f} images/s", file=sys.stderr)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="small", help="small, or one of conf/model")
    arguments = parser.parse_args()
    if arguments.steps <= WINDOW:
        parser.error(f"--steps {arguments.steps}: more than the {WINDOW} of the warm-up")
    scratch = Path(tempfile.mkdtemp())
    try:
        figures = measure(arguments, scratch)
    finally:
        shutil.rmtree(scratch)
    tell("throughput", rows(figures), figures)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    images = arguments.images.resolve() if arguments.images else scratch / "images"
    if not arguments.images:
        write_images(images, 300, shorter_side=500)
    overrides = overrides_of(arguments, images, scratch)
    work = Work(
        str(images), overrides, arguments.resolution, arguments.batch_size, arguments.steps, WINDOW, str(scratch)
    )
    limits = peer("limits", work)
    # Also prepares the images. A clock around the data has no place in the program that is measured.
    watched = peer("ours", work)
    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: program(work),
        "tutorial": lambda: peer("tutorial", work),
        "tuned": lambda: peer("tuned", work),
    }
    if importlib.util.find_spec(PACKAGE):
        contestants["package"] = lambda: peer("package", work)
    turns = take_turns(contestants, arguments.repeats)
    figures: dict[str, Any] = {
        "case": {"model": arguments.model, "resolution": arguments.resolution, "batch_size": arguments.batch_size},
        "images": "given" if arguments.images else "generated",
        "limits": limits,
        "package_installed": "package" in turns,
    }
    for name, measured in turns.items():
        last = watched if name == "ours" else measured[-1]
        rates = [turn["images_per_second"] for turn in measured]
        achieved = statistics.median(rates) * limits["flops_per_image"]
        figures[name] = {
            "images_per_second": rates,
            "ours_is_faster_by": statistics.median(
                mine["images_per_second"] / theirs for mine, theirs in zip(turns["ours"], rates, strict=True)
            ),
            "waiting_share": last["waiting_share"],
            "peak_rss": statistics.median(turn["peak_rss"] for turn in measured),
            "peak_gpu": last["peak_gpu"],
            "precision": last["precision"],
            "flops_utilisation": achieved / limits["peak_flops"]["bf16" if last["precision"] != "no" else "no"],
        }
    return figures


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    case, limits = figures["case"], figures["limits"]
    table = [
        (
            "case",
            f"{case['model']}, {limits['parameters'] / 1e6:.2f}M parameters, {case['resolution']} px, "
            f"batch {case['batch_size']}, {figures['images']} images",
        ),
        ("forward and backward", f"{limits['flops_per_image'] / 1e9:.2f} GFLOP an image"),
        (
            "matrix products",
            f"fp32 {limits['peak_flops']['no'] / 1e12:.3f}, bf16 {limits['peak_flops']['bf16'] / 1e12:.3f} TFLOP/s",
        ),
    ]
    for name, label in LABELS.items():
        if name not in figures:
            table.append((label, "not installed (pip install denoising-diffusion-pytorch)"))
            continue
        row = figures[name]
        gpu = f", {row['peak_gpu'] / 1e9:.2f} GB on the GPU" if row["peak_gpu"] else ""
        ratio = "" if name == "ours" else f"  ours is {row['ours_is_faster_by']:.2f} times as fast"
        table.append(
            (
                label,
                f"{statistics.median(row['images_per_second']):7.1f} images/s  "
                f"{'fp32' if row['precision'] == 'no' else row['precision']}, "
                f"waits for data {100 * row['waiting_share']:.1f} %, "
                f"{100 * row['flops_utilisation']:.1f} % of the matrix products, "
                f"{row['peak_rss'] / 1e9:.2f} GB{gpu}{ratio}",
            )
        )
    return table


if __name__ == "__main__":
    main()
