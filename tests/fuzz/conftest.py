"""Fuzzers: what is drawn at random, by seed, must end well or in a line, and soon.

A test marked `@pytest.mark.fuzz(small=…, large=…)` runs once for each `seed`, so often in the suite and with `--large`
(`make fuzz`). To see one again: `pytest tests/fuzz/test_….py -k 'seed-17'`.
"""

import signal
from collections.abc import Iterator
from random import Random
from types import FrameType

import pytest
from diffusers import UNet2DModel  # noqa: F401 (programs import it when they need it, which may take longer than a draw)

_LONGEST_SECONDS = 30  # a hang is longer, and a draw on a busy machine is not


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("fuzz")
    if marker:
        count = marker.kwargs["large" if metafunc.config.getoption("large") else "small"]
        metafunc.parametrize("seed", range(count), ids=lambda seed: f"seed-{seed}")


@pytest.fixture
def random(seed: int) -> Random:
    return Random(seed)


@pytest.fixture(autouse=True)
def no_hang(seed: int) -> Iterator[None]:
    """Whatever takes longer than half a minute fails there."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"seed {seed} hangs: not done after {_LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
