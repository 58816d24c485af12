"""Trains unconditional DDPM image models: fast, exact, unkillable, measured, reproducible from the config."""

import importlib
from typing import TYPE_CHECKING, Any

from ddpm_train._version import __version__

if TYPE_CHECKING:
    from ddpm_train.config.mistakes import Mistakes
    from ddpm_train.sampling.pipeline import Pipeline, load, sample
    from ddpm_train.system.signals import Stopped
    from ddpm_train.training.api import TrainedRun, evaluate, train

__all__ = ["Mistakes", "Pipeline", "Stopped", "TrainedRun", "__version__", "evaluate", "load", "sample", "train"]
_MODULES = {
    **dict.fromkeys(("Pipeline", "load", "sample"), "sampling.pipeline"),
    **dict.fromkeys(("TrainedRun", "evaluate", "train"), "training.api"),
    "Mistakes": "config.mistakes",
    "Stopped": "system.signals",
}


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import, which the version and a typo on the command line need not wait for.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
