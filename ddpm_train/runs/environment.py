"""By what a run was computed: code, versions, device, command. Nothing in it names a person, a host or a folder."""

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from ddpm_train._version import __version__
from ddpm_train.config.text import without_secrets

# What can change a run's numbers.
PACKAGES = (
    *("torch", "torchvision", "diffusers", "accelerate", "datasets", "numpy", "pillow", "safetensors"),
    "torch-fidelity",
)
# Variables by which the libraries round otherwise, or choose other algorithms. None of them holds a path.
VARIABLES = (
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
    *("TORCH_BLAS_PREFER_CUBLASLT", "DISABLE_ADDMM_CUDA_LT", "TORCH_CUDNN_USE_HEURISTIC_MODE_B"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_DETERMINISTIC"),
    *("TORCHINDUCTOR_MAX_AUTOTUNE", "NCCL_ALGO", "NCCL_PROTO"),
)
# An absolute path says where something lay on one machine; the run's own config keeps it.
_ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/-])(?:file://)?(?:[/~]|[A-Za-z]:\\)[^,\]}\s'"]*""")


def environment(arguments: Sequence[str], compute: Mapping[str, Any]) -> dict[str, Any]:
    """What computes a run from now on, as JSON holds it.

    Args:
        arguments: the program's command line, without its name.
        compute: what only the run itself knows: device, number of processes, what `auto` has chosen.
    """
    written = [_ABSOLUTE_PATH.sub("…", without_secrets(argument)) for argument in arguments]
    return {
        "command": shlex.join(["ddpm-train", *written]),
        "commit": commit(),
        **compute,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "variables": variables(),
    }


def variables() -> dict[str, str]:
    """The environment's variables that can change a run's numbers, as far as they are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def versions() -> dict[str, str]:
    """Python's, this project's, and those of the packages that can change a run's numbers."""
    found = {"python": platform.python_version(), "ddpm-train": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # brought by other means than a package manager
            found[package] = version(package)
    return found


def commit() -> dict[str, Any] | None:
    """The commit of this code's checkout, or the one that pip noted, and whether files differ; None: unknown."""
    checkout = Path(__file__).resolve().parent.parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An environment in somebody's own repository is none of this code's.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == checkout:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return {"id": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository
    try:
        origin = json.loads(distribution("ddpm-train").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    return {"id": origin["vcs_info"]["commit_id"], "dirty": False} if "vcs_info" in origin else None
