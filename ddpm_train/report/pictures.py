"""Pictures as data that stand in the page itself."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_FRAMES = 20
FRAME_SIDE = 560  # the grids of earlier steps; pixels
PICTURE_SIDE = 1200  # the last grid, the nearest neighbours
_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """An image as a `data:` URI, with the size that it has on the page, in pixels."""

    uri: str
    width: int
    height: int


def inline(path: Path, max_side: int, unreadable: list[str]) -> Picture | None:
    """A picture scaled down to at most `max_side`, as WebP; None, and named in `unreadable`, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            shown = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for torn files
        unreadable.append(f"{path.name}: {error}")
        return None
    shown.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    shown.save(encoded, "WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(encoded.getvalue()).decode()
    return Picture(f"data:image/webp;base64,{data}", *shown.size)
