"""The keys of `ddpm-data`, typed; the values stand in `conf/data.yaml`."""

from collections.abc import Iterator
from dataclasses import dataclass

from ddpm_train.config.dataset import Dataset
from ddpm_train.config.parts import FilePath, Section
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class DataConfig(Section):
    """All keys of `ddpm-data`."""

    output: FilePath | None  # None: a folder for this dataset in `data/`
    dataset: Dataset | None = None  # None: not given, which is a mistake
    extensions: tuple[str, ...] = ()  # modules to import, which add choices of the user's own


def cross_field_mistakes(config: DataConfig) -> Iterator[str]:
    """What single keys cannot show: a line for each combination that cannot work."""
    if config.dataset is None:
        yield "dataset=null: which images? give dataset=imagefolder dataset.path=FOLDER, dataset=cifar10, …"
    else:
        yield from config.dataset.mistakes()


DATA = Schema(DataConfig, cross_field_mistakes)
