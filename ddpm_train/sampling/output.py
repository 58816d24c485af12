"""A folder of images that is filled by any number of processes, killed and filled further, and never mixed.

OUTPUT/
  sampling.json       what these images are made of: model, seed, sampler, …
  images/000000.png   image i
  grid.png            the first of them
  images.npz          [N, H, W, C] uint8 under the key arr_0, if asked for
  images.parquet      a column of images that `datasets` decodes, if asked for
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.runs.folder import SAMPLING
from ddpm_train.system.files import replace_file, write_atomic

_ROW_GROUP = 1000


@dataclass(frozen=True)
class _Record:
    """What of the record is more than compared."""

    precision: Annotated[str, Field(pattern="^(fp32|bf16)( [+] [a-z_ -]+)*$")] = "fp32"  # older ones do not say


class ImageFolder:
    """Images of one model and recipe, by index."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recorded(self) -> dict[str, Any]:
        """What the images that are here are made of; empty if nothing is here.

        Raises:
            Mistakes: something is here, and nobody knows what.
        """
        try:
            read_json(self.path / SAMPLING, _Record)
            return read_json(self.path / SAMPLING, dict[str, Any])
        except BadFile as error:
            raise Mistakes(f"output={self.path}: {error}; give another output") from None
        except FileNotFoundError:
            pass
        if self.path.is_dir() and any(self.path.iterdir()):
            raise Mistakes(f"output={self.path}: holds files that are not ddpm-sample's; give another output")
        return {}

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder one of this identity.

        Raises:
            Mistakes: it holds images of another model, seed, sampler, …
        """
        if there := self.recorded():
            changed = [key for key in dict.fromkeys([*there, *identity]) if there.get(key) != identity.get(key)]
            if changed:
                shown = "; ".join(f"{key} {there.get(key)}, not {identity.get(key)}" for key in changed)
                raise Mistakes(f"output={self.path}: holds images of another kind ({shown}); give another output")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / SAMPLING, json.dumps(identity, indent=1).encode())

    def missing(self, num_images: int) -> list[int]:
        """Which of the first images are not here; one that does not decode (a full disk, a lost machine) is not."""
        images = self.path / "images"
        images.mkdir(exist_ok=True)
        for torn in images.glob(".*"):  # what a killed process was writing
            torn.unlink(missing_ok=True)
        present = {path.name for path in images.iterdir()}
        return [index for index in range(num_images) if not (_name(index) in present and self._whole(index))]

    def save(self, index: int, pixels: np.ndarray) -> None:
        """Write image `index`, uint8 [H, W, C], whole or not at all."""
        path = self.path / "images" / _name(index)
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        # Without the flush to the disk of `write_atomic`, which would cost more than small images do: what a lost
        # machine tears, `missing` finds.
        to_picture(pixels).save(staging, format="png")
        os.replace(staging, path)

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [H, W, C]."""
        with Image.open(self.path / "images" / _name(index)) as image:
            pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def write_npz(self, num_images: int) -> Path:
        """images.npz as reference batches of ADM and EDM have it; one image in memory at a time."""
        path = self.path / "images.npz"
        shape = (num_images, *self.load(0).shape)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with (
            replace_file(path) as staging,
            zipfile.ZipFile(staging, "w") as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as array,
        ):
            np.lib.format.write_array_header_1_0(array, header)
            for index in range(num_images):
                array.write(self.load(index).tobytes())
        return path

    def write_parquet(self, num_images: int) -> Path:
        """images.parquet with the columns `image` (encoded, as `datasets` stores it) and `index`."""
        import pyarrow
        import pyarrow.parquet
        from datasets import Features, Value
        from datasets import Image as ImageFeature

        path = self.path / "images.parquet"
        schema = Features({"image": ImageFeature(), "index": Value("int64")}).arrow_schema
        with replace_file(path) as staging, pyarrow.parquet.ParquetWriter(staging, schema) as writer:
            for start in range(0, num_images, _ROW_GROUP):
                rows = range(num_images)[start : start + _ROW_GROUP]
                images = [{"bytes": (self.path / "images" / _name(i)).read_bytes(), "path": _name(i)} for i in rows]
                table = pyarrow.Table.from_pydict({"image": images, "index": list(rows)}, schema=schema)
                writer.write_table(table)
        return path

    def _whole(self, index: int) -> bool:
        try:
            self.load(index)
        except (OSError, SyntaxError, ValueError):
            return False
        return True


def to_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C], C 1, 3 or 4 -> L, RGB or RGBA."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _name(index: int) -> str:
    return f"{index:06}.png"
