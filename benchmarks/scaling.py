"""The real program on one process and on several: images a second, and what the exchange of gradients costs.

    python benchmarks/scaling.py [--processes 1,2] [--images DIR] [--steps 60] [--repeats 3] [-- OVERRIDES…]
    python benchmarks/scaling.py --predict     the tables of SCALING.md: a model, measured on nothing

The global batch is the same for every count, and so are its images and noise. On the CPU all cores work whatever the
count, so an efficiency of 1 means the same images a second; on GPUs it means N times as many. The exchange's share is
found by leaving it out: the same run in which each process keeps its own gradients, in turns with the whole one.
"""

import argparse
import socket
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from limits import flops_per_image
from report import tell
from work import ROOT, WINDOW, Work, add_case, build_model, case_of, last_json, num_cores, run, tell_case, work_of

from ddpm_train.cli.sweeps.devices import visible_gpus

# What the prediction assumes; SCALING.md says where the numbers come from.
ACHIEVED_FLOPS = 0.4 * 790e12  # of each GPU
NODE_GPUS = 8
NVLINK_BANDWIDTH = 300e9  # bytes a second and GPU, one way, achieved in an all-reduce
NETWORK_BANDWIDTH = 40e9  # likewise, of one 400 Gbit/s port for each GPU
NVLINK_LATENCY, NETWORK_LATENCY = 3e-6, 8e-6  # of one message
BUCKET_BYTES = 25e6  # DistributedDataParallel's
HOST_SECONDS = 12e-3  # Python and launching of kernels in a step
HOST_LATENCY = 20e-6  # of one gloo message over TCP; its ring passes 2 (N - 1) of them one after the other
BACKWARD_SHARE = 2 / 3  # of a step's computing
PREDICTED = (("unet_64", 64, 64), ("unet_128", 128, 32), ("unet_256", 256, 8))  # model, resolution, batch of a GPU
PREDICTED_GPUS = (8, 64, 512)


def launch(work: Work, processes: int, exchange: bool) -> float:
    """Images a second of the program under `accelerate launch`."""
    log = work.fresh() / "scaling.log"
    program = [str(ROOT / "benchmarks/peers.py"), "ours", replace(work, exchange=exchange).write()]
    if processes > 1:
        devices = ["--multi_gpu"] if visible_gpus() else ["--cpu"]
        options = ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", str(free_port())]
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", *devices]
        program = [*launcher, "--num_processes", str(processes), *options, *program]
    run([sys.executable, *program], log, OMP_NUM_THREADS=str(max(1, num_cores() // processes)))
    # The clock counts the images of one process.
    return processes * last_json(log)["images_per_second"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    launch(replace(work, steps=WINDOW + 1), 1, True)  # prepares the images
    whole: dict[int, list[float]] = {count: [] for count in arguments.processes}
    alone: dict[int, list[float]] = {count: [] for count in arguments.processes if count > 1}
    for repeat in range(arguments.repeats):
        for count in arguments.processes:
            whole[count].append(launch(work, count, True))
            if count > 1:
                alone[count].append(launch(work, count, False))
            print(f"turn {repeat + 1}, {count} processes: {whole[count][-1]:.1f} images/s", file=sys.stderr)
    first = arguments.processes[0]
    devices = {count: count / first if visible_gpus() else 1.0 for count in whole}
    return {
        "case": case_of(arguments),
        "images_per_second": whole,
        "images_per_second_without_exchange": alone,
        "efficiency": {
            count: statistics.median(b / a / devices[count] for a, b in zip(whole[first], rates, strict=True))
            for count, rates in whole.items()
        },
        "exchange_share": {
            count: statistics.median(1 - a / b for a, b in zip(whole[count], rates, strict=True))
            for count, rates in alone.items()
        },
    }


def predict(gradient_bytes: float, flops: float, gpus: int) -> dict[str, float]:
    """One step of data-parallel training by the assumptions above.

    Args:
        gradient_bytes: of the whole network, float32.
        flops: forward and backward of one GPU's batch.
        gpus: a multiple of a node's.
    """
    computing = flops / ACHIEVED_FLOPS
    nodes = gpus // NODE_GPUS
    buckets = max(1.0, gradient_bytes / BUCKET_BYTES)
    inside = 2 * (NODE_GPUS - 1) / NODE_GPUS
    between = 2 * (nodes - 1) / nodes
    # Each GPU reduces its eighth of a node's gradients with the other nodes.
    exchange = gradient_bytes * (inside / NVLINK_BANDWIDTH + between / NODE_GPUS / NETWORK_BANDWIDTH)
    exchange += buckets * 2 * ((NODE_GPUS - 1) * NVLINK_LATENCY + (nodes - 1) * NETWORK_LATENCY)
    # The backward pass hides the exchange of all buckets but the last one to be ready.
    exposed = max(exchange / buckets, exchange - BACKWARD_SHARE * computing)
    # The host runs ahead of the GPU. The processes' vote on stopping has a step's time: the next one waits for it.
    host = max(HOST_SECONDS, 2 * (gpus - 1) * HOST_LATENCY)
    step = max(computing + exposed, host)
    return {"computing": computing, "exchange": exchange, "exposed": exposed, "host": host, "step": step}


def tell_predictions() -> None:
    print("| Model | GPUs | global batch | gradients | computing | exchange | exposed | host | images/s | efficiency |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model, resolution, batch in PREDICTED:
        overrides = [f"model={model}", f"dataset.resolution={resolution}", "dataset.channels=3"]
        unet = build_model(overrides)
        flops = batch * flops_per_image(unet, resolution)
        gradient_bytes = 4 * sum(parameter.numel() for parameter in unet.parameters())
        for gpus in PREDICTED_GPUS:
            step = predict(gradient_bytes, flops, gpus)
            milliseconds = {name: f"{1e3 * seconds:.2f} ms" for name, seconds in step.items()}
            print(
                f"| `{model}`, {resolution} px | {gpus} | {gpus * batch:,} | {gradient_bytes / 1e6:.0f} MB "
                f"| {milliseconds['computing']} | {milliseconds['exchange']} "
                f"| {milliseconds['exposed']} | {milliseconds['host']} "
                f"| {gpus * batch / step['step']:,.0f} | {100 * step['computing'] / step['step']:.1f} % |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", type=lambda text: [int(n) for n in text.split(",")])
    add_case(parser)
    parser.add_argument("--predict", action="store_true")
    arguments = parser.parse_args()
    if arguments.predict:
        tell_predictions()
        return
    with work_of(arguments) as work:
        figures = measure(work, arguments)
    tell(Path(__file__).stem, rows(figures), figures)


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    table = [("case", tell_case(figures["case"]))]
    for count, rates in figures["images_per_second"].items():
        share = figures["exchange_share"].get(count)
        exchange = "" if share is None else f", exchange of gradients {100 * share:.1f} % of the time"
        efficiency = f"efficiency {figures['efficiency'][count]:.3f}{exchange}"
        table.append((f"{count} process(es)", f"{statistics.median(rates):7.1f} images/s, {efficiency}"))
    return table


if __name__ == "__main__":
    main()
