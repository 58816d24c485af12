"""How the threads of one process wait for each other. Imports nothing heavy: it must come before torch."""

import os

# By any of these a user has chosen.
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Rounds of a loop, some tenths of a millisecond in all; the library's own number is 300,000.
_SPIN_COUNT = "10000"


def wait_briefly() -> None:
    """Have threads that wait for others look for a moment and then sleep, unless the environment says how they wait.
    Before torch is imported, whose OpenMP library reads that when it is loaded.

    An operation on a CPU is done when the slowest of its threads is. By default the others look again and again until
    then, and take the core that the last one needs where another program wants one, too; to sleep at once costs a third
    on a quiet machine: see benchmarks/results/busy.md. Number of threads and order of sums stay.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
