"""Averages of any width, made after a run from the two that it has kept, and from their snapshots.

Each is the average of the weights by a power function of the step. A sum of such functions comes near another one, and
the same sum of the averages near the average by that (Karras et al. 2024, arXiv 2312.02696, section 3.2, appendix C).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_train.config.ema import AVERAGES, EMA, exponent
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.schema import Schema
from ddpm_train.runs import checkpoint, snapshots
from ddpm_train.runs.state import read_state

# What the sum may lack of the function, as a share of its norm: beyond this it would be another width.
FARTHEST = 0.05
# Directions that hold less than this of the sum say nothing but how numbers are rounded.
_ROUNDING = 1e-12
Numbers = np.ndarray | np.float64


def dot(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Any:
    """The integral of the product of two power functions, (gamma + 1) t ** gamma / t_end ** (gamma + 1) from 0 to t_end
    (Karras et al. 2024, eq. 151).

    Args:
        t_a, t_b: where they end, in steps.
    """
    ratio, power = t_a / t_b, np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio**power / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def fit(steps: np.ndarray, gammas: np.ndarray, step: int, gamma: float) -> tuple[np.ndarray, float]:
    """By which sum of power functions another one is met best, by least squares (Karras et al. 2024, algorithm 3).

    Args:
        steps, gammas: where each of them ends, and its exponent, float64 [N].
        step, gamma: the same of the one that is wanted.

    Returns:
        Their coefficients, float64 [N], which add up to 1, and what the sum lacks, as a share of the wanted one's norm.
    """
    end, wanted = np.float64(step), np.float64(gamma)
    products = dot(steps[:, None], gammas[:, None], steps, gammas)
    with_wanted = dot(steps, gammas, end, wanted)
    norms = np.sqrt(np.diag(products))
    of_norm_1 = products / norms / norms[:, None]
    coefficients = np.linalg.lstsq(of_norm_1, with_wanted / norms, rcond=_ROUNDING)[0] / norms
    coefficients /= coefficients.sum()  # what all steps have in common is kept as it is
    norm = dot(end, wanted, end, wanted)
    lacks = norm - 2 * coefficients @ with_wanted + coefficients @ products @ coefficients
    return coefficients, float(np.sqrt(max(0.0, lacks) / norm))


@dataclass(frozen=True)
class _Averages:
    """The part of a run's config that says which averages it keeps."""

    ema: Annotated[EMA, AVERAGES]


def average_of_width(path: Path, width: float) -> dict[str, Tensor]:
    """The average of this width at a checkpoint, from that and the snapshots before it.

    One of a width that the run keeps comes as it is.

    Raises:
        Mistakes: the run keeps no such averages, or too few of them are there, or one is damaged.
    """
    weights, gamma = f"weights=ema@{width:g}", exponent(width)
    state, tensors = read_state(path), checkpoint.load(path)
    averages = _averages(state.identity)
    if averages is None or not averages.exponents:
        kept = f"ema={averages.name}" if averages else "another kind of average"
        raise Mistakes(f"{weights}: the run was trained with {kept}; a width can be chosen after ema=power")
    for name, known in averages.exponents.items():
        if known == gamma:
            return dict(tensors[name])
    sources = [(state.step, known, tensors[name]) for name, known in averages.exponents.items()]
    for step, snapshot in snapshots.until(path.parent.parent, state.step - 1).items():
        sources += [(step, *source) for source in _snapshot(weights, snapshot, step)]
    steps, gammas = (np.array(values, dtype=np.float64) for values in list(zip(*sources, strict=True))[:2])
    coefficients, lacks = fit(steps, gammas, state.step, gamma)
    if lacks > FARTHEST:
        raise Mistakes(
            f"{weights}: the {len(sources)} averages that are there up to step {state.step:,} come no nearer to it "
            f"than {lacks:.0%}; choose a width nearer to those of ema.widths, or train with more ema.snapshots"
        )
    return {key: _sum(coefficients, [named[key] for *_, named in sources]) for key in sources[0][2]}


def _averages(identity: Mapping[str, Any]) -> EMA | None:
    """Which averages a run keeps, by its identity; None: nobody here knows."""
    keys = {key.removeprefix("ema."): value for key, value in identity.items() if key.startswith("ema.")}
    try:
        return Schema(_Averages).parse({"ema": keys}).ema
    except Mistakes:
        return None


def _snapshot(weights: str, path: Path, step: int) -> Iterator[tuple[float, Mapping[str, Tensor]]]:
    """The exponents and the tensors of the averages in a snapshot."""
    try:
        averages = _averages(read_state(snapshots.verify(path, step)).identity)
    except checkpoint.BadCheckpoint as error:
        raise Mistakes(
            f"{weights}: the snapshot {path} is damaged: {error}; remove it, the others may suffice"
        ) from None
    tensors = checkpoint.load(path)
    for name, gamma in averages.exponents.items() if averages else ():
        yield gamma, tensors[name]


def _sum(coefficients: np.ndarray, tensors: list[Tensor]) -> Tensor:
    """In double precision, since terms of either sign cancel out."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for coefficient, tensor in zip(coefficients, tensors, strict=True):
        total.add_(tensor.double(), alpha=float(coefficient))
    return total.to(tensors[0].dtype)
