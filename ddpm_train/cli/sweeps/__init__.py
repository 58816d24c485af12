"""Sweeps: many runs of one command, each a process of its own, compared at the end. Imports no torch."""
