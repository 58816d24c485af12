"""GIF as it is shown everywhere: what no frame has painted, or one has cleared, is transparent.

Pillow fills either with a colour of the palette. Imports no torch (it runs in workers).
"""

from typing import Any

from PIL import Image

_CLEAR, _RESTORE = 2, 3  # what becomes of a frame's box before the next: nothing, or what was there before


def load_first(image: Any) -> None:
    """Load the first frame of an opened GIF file."""
    box = image.tile[0].extents if image.tile else (0, 0, *image.size)
    image.load()
    if box != (0, 0, *image.size):
        _draw_on(image, box)


def seek(image: Any, frame: int) -> None:
    """Compose an opened GIF file as far as this frame, which is then loaded as it comes.

    Raises:
        EOFError: it has no such frame.
    """
    if not image.tell():
        load_first(image)
        if image.mode != "RGBA":
            _draw_on(image, (0, 0, *image.size))
    for number in range(image.tell(), frame):
        if image.disposal_method == _CLEAR or (image.disposal_method == _RESTORE and not number):
            left, top, right, bottom = image.dispose_extent
            image.dispose = Image.new("RGBA", (right - left, bottom - top)).im
        image.seek(number + 1)


def _draw_on(image: Any, box: tuple[int, int, int, int]) -> None:
    """Let a loaded frame be drawn on nothing."""
    picture = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size)
    canvas.paste(picture.crop(box), box)
    image.im, image._mode = canvas.im, "RGBA"
    image.info.pop("transparency", None)
