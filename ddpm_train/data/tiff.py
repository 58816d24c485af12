"""TIFF files: pages that are no pictures of their own, planes of 16 bits. Imports no torch (it runs in workers)."""

from typing import Any

# Of the tag NewSubfileType, the bits of what is a smaller copy of another page, or a mask for it.
_SUBFILE_TYPE, _NO_PICTURE = 254, 1 | 4
_BITS_PER_SAMPLE, _PLANES = 258, 284
_SUB_FILES = 330  # where raw photos keep what their first page is the preview of


def is_picture(image: Any) -> bool:
    """Whether the page that an opened file is turned to stands for itself."""
    return not image.tag_v2.get(_SUBFILE_TYPE, 0) & _NO_PICTURE


def seek_first(image: Any) -> bool:
    """Turn an opened file to its first picture: scanners and cameras put a small copy before it.

    Returns:
        False: the file has it where Pillow does not look.
    """
    page = 0
    image.seek(0)
    hidden = _SUB_FILES in image.tag_v2
    while not is_picture(image):
        try:
            image.seek(page := page + 1)
        except EOFError:
            image.seek(0)
            return not hidden
    return True


def read_planes(image: Any) -> None:
    """Have an opened file that is not compressed read right, if its colours lie in planes of 16 bits.

    Pillow takes half of their bytes for values of 8 bits.
    """
    tags = image.tag_v2
    if tags.get(_PLANES) != 2 or tags.get(_BITS_PER_SAMPLE, (1,))[0] != 16:
        return
    for number, tile in enumerate(image.tile):
        plane, *others = tile.args
        little_endian = "" if plane == "I" else "L"
        order = "B" if tags.prefix == b"MM" else little_endian
        if tile.codec_name == "raw":
            image.tile[number] = tile._replace(args=(f"{plane};16{order}", *others))
