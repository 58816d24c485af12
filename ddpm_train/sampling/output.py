"""A folder of images that is filled by any number of processes, killed and filled further, and never mixed.

OUTPUT/
  sampling.json       what these images are made of: model, seed, sampler, …
  images/000000.png   image i; .npy or .tiff: in the units and the type of arrays
  grid.png            the first of them
  images.npz          [N, H, W, C], uint8 or the type of arrays, under the key arr_0, if asked for
  images.parquet      a column of images that `datasets` decodes, if asked for
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from PIL import Image
from pydantic import Field

from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.idle import own_values
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.naming import folder_name
from ddpm_train.config.pixels import PixelValues
from ddpm_train.config.sample import SampleConfig
from ddpm_train.data.array_files import ARRAY_READERS
from ddpm_train.runs.checkpoint import step_name
from ddpm_train.runs.folder import SAMPLING, run_of
from ddpm_train.sampling.refined import is_refined
from ddpm_train.system.console import counted
from ddpm_train.system.files import expanded, replace_file, write_atomic

_ROW_GROUP = 1000
# Of the record: what is not compared, but told in the place of the model's hash; and the hashes of pictures.
_MADE_BY = "made by"
_PICTURES = {"from_image": "picture", "inpaint": "mask"}
# Keys of `ddpm-sample` by which a folder is not named: they change none of its images, or which mode it is.
_UNNAMED = (
    *("pipeline", "output", "num_images", "batch_size", "format", "compile", "extensions", "animation"),
    *("trajectory", "trajectory_every_steps", "interpolate", "interpolate_frames", "compare"),
)


@dataclass(frozen=True)
class _Record:
    """What of the record is more than compared."""

    precision: Annotated[str, Field(pattern="^(fp32|bf16)( [+] [a-z_ -]+)*$")] = "fp32"  # older ones do not say


def default_folder(config: SampleConfig, step: int | None) -> Path:
    """samples/RUN/step_NNNNNNNN[/MODE,KEY=VALUE,…]: what is sampled, and what is not as it is by default.

    Args:
        step: of the model; None: not known.
    """
    changed = [] if config.visualization is None else [config.visualization]
    changed += [folder_name(changes)] if (changes := _changes(config)) else []
    return Path("samples", model_folder(config.pipeline, step), *([",".join(changed)] if changed else []))


def model_folder(pipeline: str, step: int | None) -> Path:
    """RUN/step_NNNNNNNN, or the name of what is no run; see `default_folder`."""
    folder = expanded(pipeline)
    name = (run_of(pipeline) or folder).absolute().name if folder.exists() else pipeline
    if is_refined(pipeline) and (run := run_of(str(folder.parent))) is not None:  # many are called so
        name = f"{run.absolute().name}_{name}"
    return Path(name) if step is None else Path(name, step_name(step))


def _changes(config: SampleConfig) -> dict[str, str]:
    """The keys that change the images and are not as they are by default, as one writes them."""
    own, sampler = own_values("sample"), config.sampler
    of_sampler = {"sampler": sampler.name} if sampler.name != own["sampler"]["name"] else {}
    of_sampler |= {f"sampler.{name}": as_written(argument) for name, argument in sampler.arguments.items()}
    others = [key for key in own if key not in ("sampler", "guidance", *_UNNAMED)]
    of_others = {key: as_written(value) for key in others if (value := getattr(config, key)) != own[key]}
    return of_sampler | config.guidance.changes | of_others


def ending_of(config: SampleConfig, values: PixelValues | None) -> str:
    """How the files of single images end.

    Args:
        values: see `Model`.

    Raises:
        Mistakes: the format does not hold what the model makes.
    """
    if config.format in ("npy", "tiff"):
        return config.format
    if values is not None and config.format in ("png", "parquet"):
        raise Mistakes(
            f"format={config.format}: holds pictures of 8 bits, and this model makes arrays of {values.dtype} in "
            f"{counted(len(values.low), 'channel')}; use npy, tiff or npz"
        )
    return "png" if values is None else "npy"


class ImageFolder:
    """Images of one model and recipe, by index.

    Args:
        ending: of their files: png, npy or tiff.
    """

    def __init__(self, path: Path, ending: str = "png") -> None:
        self.path = path
        self._ending = ending

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
        # Beside images their trajectory, and what else is made of the same model, may lie in folders of their own.
        if self.path.is_dir() and not all((path / SAMPLING).is_file() for path in self.path.iterdir()):
            raise Mistakes(f"output={self.path}: holds files that are not ddpm-sample's; give another output")
        return {}

    def claim(self, identity: Mapping[str, Any], made_by: str) -> None:
        """Make the folder one of this identity.

        Args:
            made_by: which model it is, for people.

        Raises:
            Mistakes: it holds images of another model, seed, sampler, …
        """
        if there := self.recorded():
            keys = dict.fromkeys([*there, *identity])
            changed = [key for key in keys if key != _MADE_BY and there.get(key) != identity.get(key)]
            if changed:
                shown = "; ".join(_difference(key, there, {**identity, _MADE_BY: made_by}) for key in changed)
                remedy = "give another output, or remove that folder"
                raise Mistakes(f"output={self.path}: holds images of another kind ({shown}); {remedy}")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / SAMPLING, json.dumps({**identity, _MADE_BY: made_by}, indent=1).encode())

    def missing(self, num_images: int) -> list[int]:
        """Which of the first images are not here; one that does not decode (a full disk, a lost machine) is not."""
        images = self.path / "images"
        images.mkdir(exist_ok=True)
        for torn in images.glob(".*"):  # what a killed process was writing
            torn.unlink(missing_ok=True)
        present = {path.name for path in images.iterdir()}
        names = {index: f"{index:06}.{self._ending}" for index in range(num_images)}
        return [index for index, name in names.items() if not (name in present and self._whole(index))]

    def _file(self, index: int) -> Path:
        return self.path / "images" / f"{index:06}.{self._ending}"

    def save(self, index: int, pixels: np.ndarray) -> None:
        """Write image `index`, [H, W, C], whole or not at all."""
        path = self._file(index)
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        # Without the flush to the disk of `write_atomic`, which would cost more than small images do: what a lost
        # machine tears, `missing` finds.
        with open(staging, "wb") as file:
            if self._ending == "npy":
                np.save(file, pixels)
            elif self._ending == "tiff":
                _write_tiff(file, pixels)
            else:
                to_picture(pixels).save(file, format="png")
        os.replace(staging, path)

    def load(self, index: int) -> np.ndarray:
        """Image `index`, [H, W, C]."""
        path = self._file(index)
        if self._ending == "png":
            with Image.open(path) as image:
                pixels = np.asarray(image)
        else:
            pixels = ARRAY_READERS[path.suffix].read(path, None)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def write_npz(self, num_images: int) -> Path:
        """images.npz as reference batches of ADM and EDM have it; one image in memory at a time."""
        path = self.path / "images.npz"
        first = self.load(0)
        descr, shape = np.lib.format.dtype_to_descr(first.dtype), (num_images, *first.shape)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
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
                files = map(self._file, rows)
                images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
                table = pyarrow.Table.from_pydict({"image": images, "index": list(rows)}, schema=schema)
                writer.write_table(table)
        return path

    def _whole(self, index: int) -> bool:
        try:
            self.load(index)
        except (OSError, SyntaxError, ValueError, EOFError):
            return False
        return True


def _write_tiff(file: BinaryIO, pixels: np.ndarray) -> None:
    from tifffile import imwrite

    planes = {"photometric": "minisblack", "planarconfig": "contig"} if pixels.shape[-1] > 1 else {}
    imwrite(file, pixels if planes else pixels[..., 0], **planes)


def to_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C], C 1, 3 or 4 -> L, RGB or RGBA."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _difference(key: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What is not the same; of hashes what they are of."""
    if key == "model":
        models = there.get(_MADE_BY), here[_MADE_BY]
        return (
            "made by other weights of that name"
            if models[0] in (None, models[1])
            else "made by {}, not {}".format(*models)
        )
    if key in _PICTURES:
        return f"with another {_PICTURES[key]}, or none"
    return f"{key}={as_written(there.get(key))}, not {as_written(here.get(key))}"
