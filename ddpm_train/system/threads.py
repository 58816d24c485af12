"""How the threads of one process wait for each other. Imports nothing heavy: it must come before torch."""

import os

# By any of these a user has chosen.
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> None:
    """Have threads that wait for others sleep, unless the environment says how they wait. Before torch is imported.

    An operation on a CPU is done when the slowest of its threads is. By default the others look again and again until
    then, for milliseconds, and so take the core that the last one needs where another program wants one, too: see
    benchmarks/results/busy.md. Number of threads and order of sums stay.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # the OpenMP library reads it when it is loaded
