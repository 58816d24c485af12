"""Images as files, good and bad, and configs of the datasets that they make."""

import io
import zlib
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pydantic import TypeAdapter

from ddpm_train.config.dataset import Dataset
from helpers.cli import ROOT


def dataset_config(source: str, path: Path | str, **values: Any) -> Dataset:
    """conf/dataset/base.yaml with some values changed."""
    base = yaml.safe_load((ROOT / "conf/dataset/base.yaml").read_text())
    return TypeAdapter(Dataset).validate_python({**base, "source": source, "path": str(path), **values})


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_bomb(side: int) -> bytes:
    """A valid PNG of side x side 1-bit pixels, made without the pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    compressor = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
