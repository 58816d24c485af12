"""How every benchmark tells its figures: one table for people, one JSON file for machines, with what they depend on."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddpm_train.runs.environment import commit

RESULTS = Path(os.environ.get("RESULTS") or Path(__file__).parent / "results")
PACKAGES = ("torch", "diffusers", "accelerate", "safetensors")


def circumstances() -> dict[str, Any]:
    """Date, hardware, versions and command, without names of the machine."""
    import torch

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    code = commit()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "commit": code["id"][:7] if code else None,
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {models[0].split(':')[1].strip()}" if models else "unknown",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **({"rehearsal": True} if os.environ.get("REHEARSE") else {}),
    }


def tell(name: str, rows: list[tuple[str, str]], figures: dict[str, Any]) -> None:
    """Print the table and write NAME.json into results/, or where the environment's RESULTS says."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"circumstances": circumstances(), "figures": figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
