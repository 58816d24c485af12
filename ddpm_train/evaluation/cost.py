"""Quality against cost: one score for each sampler and number of steps, in a table and a picture."""

from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from ddpm_train.system.columns import columns

WITHIN = 0.05


@dataclass(frozen=True)
class CostRow:
    """A sampler at a number of steps.

    Attributes:
        value: the score.
        seconds_per_image: of one process, to sample; not to score.
    """

    sampler: str
    num_inference_steps: int
    value: float
    interval: tuple[float, float] | None
    seconds_per_image: float


@dataclass(frozen=True)
class Cost:
    """Rows of one score, such as "kid_efficientnet_lite0_n2048"."""

    metric: str
    lower_is_better: bool
    rows: tuple[CostRow, ...]

    def fewest_within(self) -> CostRow:
        """The row with the fewest steps (then seconds) whose score is within 5 % of the many-step score.

        The many-step score is the best among the rows with the most steps; a better score than that is within it.
        """
        most = max(row.num_inference_steps for row in self.rows)
        sign = 1 if self.lower_is_better else -1
        target = min(sign * row.value for row in self.rows if row.num_inference_steps == most)
        within = [row for row in self.rows if sign * row.value <= target + WITHIN * abs(target)]
        return min(within, key=lambda row: (row.num_inference_steps, row.seconds_per_image))

    def to_json(self) -> dict[str, Any]:
        fewest = self.fewest_within()
        return {
            "metric": self.metric,
            "rows": [asdict(row) for row in self.rows],
            "fewest_within_5_percent": {"sampler": fewest.sampler, "num_inference_steps": fewest.num_inference_steps},
            "picture": "cost.png",
        }

    def table(self) -> list[str]:
        """Lines for a person."""
        fewest = self.fewest_within()
        rows = [["", "sampler", "steps", "s/image", self.metric, "interval"]]
        for row in self.rows:
            interval = f"{row.interval[0]:.4g} … {row.interval[1]:.4g}" if row.interval else ""
            numbers = (str(row.num_inference_steps), f"{row.seconds_per_image:.4f}", f"{row.value:.4g}")
            rows.append(["*" if row == fewest else "", row.sampler, *numbers, interval])
        return [*columns(rows), f"  * the fewest steps within {WITHIN:.0%} of the score that the most steps reach"]

    def picture(self) -> Image.Image:
        """The score over seconds for an image, a line for each sampler, steps beside the points."""
        from ddpm_train.report.charts import quality_against_cost  # matplotlib takes a third of a second to import

        return quality_against_cost(self.to_json()).picture()
