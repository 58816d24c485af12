"""The keys of `ddpm-export`, typed; the values stand in `conf/export.yaml`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ddpm_train.config.ema import Weights
from ddpm_train.config.parts import FilePath, Required, Resolution, Section
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class ExportConfig(Section):
    """All keys of `ddpm-export`."""

    pipeline: Annotated[FilePath, Required]  # what ddpm-sample loads
    revision: str | None  # of the Hub repository
    weights: Weights
    format: Literal["onnx"]
    resolution: Resolution | None  # None: what the model was made for
    output: FilePath | None  # None: by what is exported, see `model_folder`
    extensions: tuple[str, ...] = ()  # modules to import, which the run's config names


EXPORT = Schema(ExportConfig)
