"""Which width of a run's average is best: one score for each, in a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddpm_train.evaluation.scores import Score
from ddpm_train.system.columns import columns


@dataclass(frozen=True)
class Widths:
    """The same score of several widths."""

    scores: Mapping[float, Score]

    @property
    def best(self) -> float:
        """Of equals the first."""
        return min(self.scores, key=lambda width: self.scores[width].value * self._sign)

    @property
    def _sign(self) -> int:
        return 1 if next(iter(self.scores.values())).lower_is_better else -1

    def named(self) -> list[Score]:
        """Each with its width in its name, such as "held_out_loss@0.1"."""
        return [replace(score, name=f"{score.name}@{width:g}") for width, score in self.scores.items()]

    def to_json(self) -> dict[str, Any]:
        """With what the best depends on, as all do but for the weights."""
        rows = [
            {"width": width, "value": score.value, "interval": score.interval} for width, score in self.scores.items()
        ]
        best = self.scores[self.best]
        return {"metric": best.name, "rows": rows, "best": self.best, "depends_on": asdict(best.depends_on)}

    def table(self) -> list[str]:
        """Lines for a person."""
        best = self.scores[self.best]
        rows = [["", "width", best.name, "interval"]]
        for width, score in self.scores.items():
            interval = f"{score.interval[0]:.4g} … {score.interval[1]:.4g}" if score.interval else ""
            rows.append(["*" if width == self.best else "", f"{width:g}", f"{score.value:.4g}", interval])
        return [*columns(rows), f"  * the best by {best.name} of the held-out images: weights=ema@{self.best:g}"]
