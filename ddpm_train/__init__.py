"""Trains unconditional DDPM image models: fast, exact, unkillable, measured, reproducible from the config."""

__version__ = "0.1.0"
