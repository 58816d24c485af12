"""What images cost before the first step: preparing them, finding them again, their order, and starting late in a run.

    python benchmarks/prepare.py [--images DIR] [--counts 1000,10000,100000] [--repeats 3]

A few photographs (generated without --images), linked many times, so that 100,000 of them need little disk. Each
preparation is a process of its own with an empty cache, in turns with one core and with all (more than 10,000 images
once: each turn is long); then another process finds the cache. The order of 10^4 to 10^9 images and the first batch at
position 10^4 to 10^9 are timed in one process: both should be flat.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from photographs import write_photographs
from report import tell
from work import config_of, num_cores

DISTINCT = 250
MANY = 10_000
BATCH = 64
MAGNITUDES = range(4, 10)


def open_images(folder: Path, cache_dir: Path, num_workers: int | None) -> Any:
    from ddpm_train.data.loader import open_data

    overrides = [
        *("dataset=imagefolder", f"dataset.path={folder}", "dataset.resolution=64", "dataset.validation_fraction=0"),
        *(f"dataset.cache_dir={cache_dir}", f"dataset.num_workers={'null' if num_workers is None else num_workers}"),
    ]
    config = config_of(overrides).dataset
    started = time.monotonic()
    data = open_data(config, progress=False)
    return data.train, time.monotonic() - started


class WorkersMemory:
    """The peak memory of the largest of this process's children. What `getrusage` says of them is this process's own
    memory, in which a child stands for a moment when it starts."""

    def __init__(self) -> None:
        self.peak_rss = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "WorkersMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        parent = psutil.Process()
        while not self._done.wait(0.1):
            for worker in parent.children():
                try:
                    status = Path(f"/proc/{worker.pid}/status").read_text()
                except OSError:
                    continue  # it has ended
                lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
                self.peak_rss = max([self.peak_rss, *(int(line.split()[1]) * 1024 for line in lines)])


def child(folder: Path, cache_dir: Path, num_workers: int | None) -> dict[str, float]:
    """One preparation, and the peak memory: of the process that goes on to train, before and after, and of a worker."""
    import ddpm_train.data.loader  # noqa: F401

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = peak()
    with WorkersMemory() as workers:
        _, seconds = open_images(folder, cache_dir, num_workers)
    return {"seconds": seconds, "imports_rss": before, "peak_rss": peak(), "worker_rss": workers.peak_rss}


def in_process(folder: Path, cache_dir: Path, num_workers: int | None) -> dict[str, float]:
    workers = [] if num_workers is None else ["--workers", str(num_workers)]
    command = [sys.executable, __file__, "--prepare", str(folder), "--into", str(cache_dir), *workers]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def link_images(base: Path, folder: Path, count: int) -> None:
    originals = sorted(path for path in base.rglob("*") if path.is_file())
    for number in range(count):
        original = originals[number % len(originals)]
        below = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
        os.symlink(original, below / f"{number:07d}{original.suffix}")


def preparation(base: Path, scratch: Path, count: int, repeats: int) -> dict[str, Any]:
    folder, cache_dir = scratch / f"images{count}", scratch / "cache"
    link_images(base, folder, count)
    turns: dict[str, list[dict[str, float]]] = {"one_core": [], "all_cores": [], "found": []}
    for turn in range(1 if count > MANY else repeats):
        for name, num_workers in (("one_core", 0), ("all_cores", None)):
            shutil.rmtree(cache_dir, ignore_errors=True)
            turns[name].append(in_process(folder, cache_dir, num_workers))
            seconds = turns[name][-1]["seconds"]
            print(f"{count:,} images, turn {turn + 1}, {name}: {count / seconds:.1f} images/s", file=sys.stderr)
        turns["found"].append(in_process(folder, cache_dir, None))
    shutil.rmtree(folder)
    seconds = {name: [turn["seconds"] for turn in all_of] for name, all_of in turns.items()}
    return {
        "seconds": seconds,
        "images_per_second": {name: count / statistics.median(seconds[name]) for name in ("one_core", "all_cores")},
        "all_cores_are_faster_by": statistics.median(
            a / b for a, b in zip(seconds["one_core"], seconds["all_cores"], strict=True)
        ),
        "above_imports_rss": max(turn["peak_rss"] - turn["imports_rss"] for turn in turns["all_cores"]),
        "peak_rss": max(turn["peak_rss"] for turn in turns["all_cores"]),
        "worker_rss": max(turn["worker_rss"] for turn in turns["all_cores"]),
    }


def order_seconds(num_images: int, repeats: int) -> float:
    """Finding the images of one batch, in the middle of the third epoch."""
    from ddpm_train.data.order import image_indices

    positions = np.arange(BATCH) + 5 * num_images // 2
    times = []
    for _ in range(100 * repeats):
        started = time.perf_counter()
        image_indices(positions, num_images, seed=0)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def first_batch_seconds(images: Any, position: int, repeats: int) -> float:
    """From nothing to the batch with which a run goes on after `position` images."""
    import torch
    from diffusers import DDPMScheduler

    from ddpm_train.config.losses import MSE
    from ddpm_train.data.loader import Batches, micro_batches
    from ddpm_train.diffusion.objective import Objective
    from ddpm_train.training.state import BatchPlan

    plan = BatchPlan(BATCH, BATCH, num_processes=1, process_index=0)
    batches = Batches(images, 0, random_crop=False, random_flip=True)
    objective = Objective(DDPMScheduler(), MSE("mse"), seed=0)
    times = []
    for _ in range(10 * repeats):
        started = time.perf_counter()
        positions = plan.positions(position // BATCH)
        where = {"device": torch.device("cpu"), "resident": False, "num_workers": 0}
        loading = micro_batches(batches, objective, positions, **where)
        next(loading)
        times.append(time.perf_counter() - started)
        loading.close()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of photographs; otherwise they are generated")
    parser.add_argument("--counts", default="1000,10000,100000", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--repeats", type=int, default=3)
    for option in ("--prepare", "--into", "--workers"):  # how this script calls itself
        parser.add_argument(option, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        workers = None if arguments.workers is None else int(arguments.workers)
        print(json.dumps(child(Path(arguments.prepare), Path(arguments.into), workers)))
        return
    scratch = Path(tempfile.mkdtemp())
    try:
        figures = measure(arguments, scratch)
    finally:
        shutil.rmtree(scratch)
    tell(Path(__file__).stem, rows(figures), figures)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    base, repeats = scratch / "base", arguments.repeats
    if arguments.images:
        base = arguments.images.resolve()
    else:
        write_photographs(base, DISTINCT)
    prepared = {count: preparation(base, scratch, count, repeats) for count in arguments.counts}
    images, _ = open_images(base, scratch / "cache", 0)
    first_batch_seconds(images, 0, repeats)  # the first one of a process also starts torch's threads
    return {
        "cores": num_cores(),
        "images": "given" if arguments.images else "generated",
        "prepared": prepared,
        "order_seconds": {10**power: order_seconds(10**power, repeats) for power in MAGNITUDES},
        "first_batch_seconds": {10**power: first_batch_seconds(images, 10**power, repeats) for power in MAGNITUDES},
    }


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    def flat(seconds: dict[int, float]) -> str:
        return "  ".join(f"10^{len(str(at)) - 1}: {1e3 * value:.2f} ms" for at, value in seconds.items())

    table = [("images", figures["images"])]
    for count, row in figures["prepared"].items():
        rate = row["images_per_second"]
        table.append(
            (
                f"preparing {count:,}",
                f"{rate['one_core']:.0f} images/s with one core, {rate['all_cores']:.0f} with {figures['cores']} "
                f"({row['all_cores_are_faster_by']:.2f} times); peak {row['peak_rss'] / 1e6:.0f} MB, "
                f"{row['above_imports_rss'] / 1e6:.0f} MB above the imports; a worker {row['worker_rss'] / 1e6:.0f} MB",
            )
        )
        table.append((f"finding {count:,} again", f"{statistics.median(row['seconds']['found']):.3f} s"))
    table.append((f"order of {BATCH} images of", flat(figures["order_seconds"])))
    table.append(("first batch at position", flat(figures["first_batch_seconds"])))
    return table


if __name__ == "__main__":
    main()
