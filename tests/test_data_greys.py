"""Grey images of more than 8 bits are as bright as they were meant, all of a dataset alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from helpers.cli import TESTS, Cli
from helpers.images import dataset_config
from PIL import Image
from pydantic import TypeAdapter

from ddpm_train.config.dataset import Dataset
from ddpm_train.data.loader import Data, open_data

Open = Callable[..., Data]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """A dataset of images of one value each, in files of that type."""

    def opened(*values: float, dtype: type = np.int32, **config: Any) -> Data:
        root = tmp_path / f"{np.dtype(dtype)} {values[:3]}"
        root.mkdir(exist_ok=True)
        for index, value in enumerate(values):
            Image.fromarray(np.full((8, 8), value, dtype=dtype)).save(root / f"{index:03}.tiff")
        settings = {"resolution": 8, "channels": 1, "validation_fraction": 0.0, "max_broken_fraction": 0.5, **config}
        return open_data(dataset_config("folder", root, cache_dir=str(tmp_path / "cache"), **settings), progress=False)

    return opened


def pixels(data: Data) -> list[int]:
    return data.train.load(range(len(data.train)))[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_images_of_a_dataset_have_one_range(opened: Open, cache: str) -> None:
    of_8_bits = opened(0, 100, 230, cache=cache)
    assert pixels(of_8_bits) == [0, 100, 230] and (of_8_bits.greys.least, of_8_bits.greys.white) == (0, 255)
    # The second is dark; that it would fit into 8 bits says nothing.
    of_16_bits = opened(65535, 200, 25700, cache=cache)
    assert pixels(of_16_bits) == [255, 1, 100] and of_16_bits.greys.white == 65535
    assert pixels(opened(0, 1024, 4095, value_range=[0, 4095], cache=cache)) == [0, 64, 255]
    assert pixels(opened(0.0, 0.5, 1.0, dtype=np.float32, value_range=[0, 1], cache=cache)) == [0, 128, 255]
    assert opened(1, 2, dtype=np.uint8).greys is None


def test_what_does_not_lie_in_the_range_is_told(opened: Open) -> None:
    values = [100] * 200
    values[1] = 300  # none of those that are looked at
    found = opened(*values)
    assert len(found.train) == 199 and found.broken == [
        (
            "001.tiff",
            "grey values from 300 to 300, and nothing says which of them are black and white; "
            "give dataset.value_range=[low,high]",
        )
    ]
    assert len(opened(-1, 300, 400, 70_000).broken) == 2


def test_arrays_in_a_parquet_column_train_as_they_look(
    cli: Cli, tmp_path: Path, garments: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` stores lists of numbers as 32-bit integers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_datasets")
    features = datasets.Features({"image": datasets.Image()})
    cells = [np.asarray(image).astype(np.int32) for image in garments[:24]]
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    mine = ("dataset=hub", f"dataset.path={tmp_path / 'rows.parquet'}", "dataset.channels=1")
    said = cli.train(*mine, "train.max_steps=1", "evaluation=none", "tracker=none")
    most = max(int(cell.max()) for cell in cells)
    assert (
        f"0 to {most} in grey images of more than 8 bits (24 of 24 looked at): 0 is black, 255 white; "
        "give dataset.value_range=[low,high] if that is wrong"
    ) in said
    config = dataset_config("hub", tmp_path / "rows.parquet", resolution=28, channels=1, validation_fraction=0.0)
    assert np.array_equal(open_data(config, progress=False).train.load(range(24))[:, 0], cells)
    said = cli.train(*mine, "dataset.value_range=[255,0]", expect=2)
    assert said == (
        "error: dataset.value_range=[255.0,0.0]: black is not below white; give [low,high] with low below high\n"
    )


def test_a_config_from_before_has_no_value_range() -> None:
    values = yaml.safe_load((TESTS / "data/run_before_rooms/config.yaml").read_text())["dataset"]
    assert TypeAdapter(Dataset).validate_python(values).value_range is None
