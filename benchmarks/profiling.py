"""Where the time of training steps goes: the kernels that take most of it, launches, and the device's idle time."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a trace calls work of the device. On a CPU that is the operators, of which one may call others.
GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
CPU_WORK = {"cpu_op"}
TOP = 12


@contextmanager
def profiled(steps: int, figures: dict[str, Any]) -> Iterator[None]:
    """Fill `figures` with what the device does in the body, which trains that many steps."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        yield
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    work = [event for event in events if event.get("cat") in (GPU_WORK if cuda else CPU_WORK)]
    if work:
        figures.update(summary(work, steps))


def summary(work: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Of the device's work in so many steps: events with a name, and start `ts` and duration `dur` in microseconds.

    The share in which the device is idle is that of the time between the first start and the last end.
    """
    busy, first, last = covered((event["ts"], event["ts"] + event["dur"]) for event in work)
    durations: Counter[str] = Counter()
    for event in work:
        durations[event["name"]] += event["dur"]
    total = durations.total()
    return {
        "step_milliseconds": (last - first) / steps / 1e3,
        "idle_share": 1 - busy / (last - first),
        "launches_a_step": len(work) / steps,
        "top": [
            {"name": name, "milliseconds_a_step": time / steps / 1e3, "share": time / total}
            for name, time in durations.most_common(TOP)
        ],
    }


def covered(intervals: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
    """How much time the intervals cover together, and when the first begins and the last ends."""
    ordered = sorted(intervals)
    first = end = ordered[0][0]
    busy = 0.0
    for start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy, first, end


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """For people; the figures are empty where the profiler may not see the device."""
    if not figures:
        return [("a step", "the profiler has seen nothing of the device's work")]
    step = (
        f"{figures['step_milliseconds']:.2f} ms under the profiler, {figures['launches_a_step']:,.0f} launches, "
        f"device idle {100 * figures['idle_share']:.1f} %"
    )
    kernels = [
        ("", f"{100 * kernel['share']:5.1f} %  {kernel['milliseconds_a_step']:8.3f} ms  {kernel['name'][:90]}")
        for kernel in figures["top"]
    ]
    return [("a step", step), *kernels]
