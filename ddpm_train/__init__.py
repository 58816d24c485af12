"""Trains unconditional DDPM image models: fast, exact, unkillable, measured, reproducible from the config."""

from typing import TYPE_CHECKING, Any

from ddpm_train._version import __version__

if TYPE_CHECKING:
    from ddpm_train.sampling.pipeline import Pipeline, load, sample

__all__ = ["Pipeline", "__version__", "load", "sample"]


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import, which the version and a typo on the command line need not wait for.
    if name in __all__:
        from ddpm_train.sampling import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
