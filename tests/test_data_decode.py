import io
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encoded, png_bomb
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ddpm_train.data.crops import CENTRE, crop_origin
from ddpm_train.data.decode import BrokenImage, Decoder

WHITE = (255, 255, 255)
EXIF_ORIENTATION = 0x0112


def decoder(
    resolution: tuple[int, int] = (8, 8),
    channels: int = 3,
    background: tuple[int, int, int] = WHITE,
    crop: str = "center",
    max_pixels: int = 89_478_485,
) -> Decoder:
    return Decoder(resolution, channels, background, crop, max_pixels)


def solid(mode: str, colour: object, **info: object) -> bytes:
    return encoded(Image.new(mode, (8, 8), colour), **info)


RED_AND_CLEAR = Image.new("P", (8, 8), 0)
RED_AND_CLEAR.putpalette([255, 0, 0, 0, 0, 255])
GREY16 = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))


@pytest.mark.parametrize(
    ("data", "rgba"),
    [
        (solid("L", 77), (77, 77, 77, 255)),
        (solid("LA", (77, 255)), (77, 77, 77, 255)),
        (solid("LA", (77, 0)), (77, 77, 77, 0)),
        (encoded(RED_AND_CLEAR), (255, 0, 0, 255)),
        (encoded(RED_AND_CLEAR, transparency=1), (255, 0, 0, 255)),
        (encoded(RED_AND_CLEAR, transparency=0), (255, 0, 0, 0)),
        (encoded(RED_AND_CLEAR, "GIF", transparency=0), (255, 0, 0, 0)),
        (solid("RGB", (1, 2, 3)), (1, 2, 3, 255)),
        (solid("RGB", (1, 2, 3), transparency=(1, 2, 3)), (1, 2, 3, 0)),
        (solid("RGBA", (10, 20, 30, 255)), (10, 20, 30, 255)),
        (encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), (0, 255, 255, 255)),
        (encoded(GREY16), (156, 156, 156, 255)),  # 40,000 / 257 = 155.6
        (encoded(GREY16, "TIFF"), (156, 156, 156, 255)),
        (solid("1", 1), (255, 255, 255, 255)),
        (solid("1", 0), (0, 0, 0, 255)),
    ],
    ids=str.split(
        "L LA LA-clear P P-other-clear P-clear GIF-clear RGB RGB-clear RGBA CMYK I16 I16-tiff bit-white bit-black"
    ),
)
def test_modes_to_channels(data: bytes, rgba: tuple[int, int, int, int]) -> None:
    background = (0, 100, 200)
    shown = np.array(rgba[:3] if rgba[3] else background)
    luma = np.rint(shown @ (0.299, 0.587, 0.114))
    four = decoder(channels=4)(data)
    assert np.all(four[3] == rgba[3])
    if rgba[3]:
        assert np.all(four[:3] == shown[:, None, None])
    assert np.all(decoder(background=background)(data) == shown[:, None, None])
    grey = decoder(channels=1, background=background)(data)
    assert grey.shape == (1, 8, 8) and grey.dtype == np.uint8
    assert np.abs(grey - luma).max() <= 1


def test_half_transparent_pixels_are_composed_over_the_background() -> None:
    data = solid("RGBA", (200, 0, 100, 128))
    mixed = decoder(background=(0, 100, 100))(data)[:, 0, 0]
    assert np.abs(mixed - np.array([100, 50, 100])).max() <= 1
    assert tuple(decoder(channels=4)(data)[:, 0, 0]) == (200, 0, 100, 128)


def test_16_bit_grey_is_scaled_over_its_whole_range() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert np.array_equal(decoder((256, 256), 1)(encoded(image, "TIFF"))[0], (ramp.astype(int) + 128) // 257)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_integers_of_8_bits_stay_what_they_are_however_they_are_stored(dtype: type) -> None:
    ramp = np.arange(256, dtype=dtype).reshape(16, 16)
    assert np.array_equal(decoder((16, 16), 1)(encoded(Image.fromarray(ramp), "TIFF"))[0], ramp)


def test_a_value_range_says_what_is_black_and_white() -> None:
    values = np.array([[-1000, -250], [400, 3000]])
    window = replace(decoder((2, 2), 1), value_range=(-1000.0, 400.0))
    for dtype in (np.int32, np.float32):
        data = encoded(Image.fromarray(values.astype(dtype)), "TIFF")
        assert window(data)[0].tolist() == [[0, 137], [255, 255]]
        with pytest.raises(BrokenImage, match=r"^grey values from -1000 to 3000, .* dataset.value_range=\[low,high\]"):
            decoder()(data)
    assert np.all(window(solid("L", 77)) == 77)  # photographs are what they are
    with pytest.raises(BrokenImage, match="not finite"):
        window(encoded(Image.new("F", (8, 8), float("nan")), "TIFF"))


def test_floating_point_grey_is_refused_for_its_unknown_range() -> None:
    with pytest.raises(
        BrokenImage, match="grey values from 0 to 0, and nothing says which of them are black and white"
    ):
        decoder()(encoded(Image.new("F", (8, 8)), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_show_the_same_picture(format: str, garments: list[Image.Image]) -> None:
    upright = garments[0].convert("RGB").resize((48, 32))
    # How a camera held otherwise stores the picture: the inverse of what each orientation asks for.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    decode = decoder((32, 48))
    expected = np.asarray(upright).transpose(2, 0, 1).astype(int)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        pixels = decode(encoded(image, format, exif=exif, **options))
        assert np.abs(pixels - expected).max() <= (3 if format == "JPEG" else 0), orientation


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    image = Image.new("RGB", (8, 8), (9, 99, 199))
    junk = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x07\0\xff\xff\xff\xff" * 3
    assert np.abs(decoder()(encoded(image, "JPEG", quality=100, exif=junk))[:, 0, 0] - (9, 99, 199)).max() <= 3


def tags(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of tags, each with its type and its value: of 4 bytes, or of 8, which stand behind the others."""
    end = 8 + 2 + 12 * len(entries) + 4
    data, behind = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)), b""
    for tag, kind, value in entries:
        inside = value if len(value) == 4 else struct.pack("<I", end + len(behind))
        behind += b"" if len(value) == 4 else value
        data += struct.pack("<HHI", tag, kind, 1) + inside
    return b"Exif\0\0" + data + bytes(4) + behind


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_does_not_keep_a_picture_from_being_turned(format: str) -> None:
    """Pillow could not write these again: a negative number where none should be, no number, an unknown kind."""
    orientation = (EXIF_ORIENTATION, 3, struct.pack("<HH", 6, 0))
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))
    odd = ((282, 10, struct.pack("<ii", -1, 0)), (700, 12, struct.pack("<d", np.nan)), (700, 9, struct.pack("<i", -1)))
    for entry in odd:
        pixels = decoder(channels=1)(encoded(half, format, exif=tags(orientation, entry)))[0]
        assert pixels[:, 5:].min() > 200 and pixels[:, :3].max() < 50
    twice = b"Exif\0\0" + tags(orientation)
    assert decoder(channels=1)(encoded(half, format, exif=twice))[0, :, 5:].min() > 200


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_xmp_of_a_tiff_file_that_is_no_text() -> None:
    directory = ImageFileDirectory_v2()
    directory[700], directory.tagtype[700] = (1, 2, 3), 4
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 8, 4))
    directory[EXIF_ORIENTATION] = 6
    assert decoder(channels=1)(encoded(half, "TIFF", tiffinfo=directory))[0, :, 4:].min() == 255


def test_a_fine_checkerboard_becomes_grey() -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decoder((16, 16), channels=1)(encoded(Image.fromarray(board))).astype(int)
    assert np.abs(pixels - 128).max() <= 2


def stripes(widths: list[int], height: int) -> bytes:
    """Vertical stripes of the values 0, 50, 100, ... side by side."""
    row = np.repeat(np.arange(len(widths), dtype=np.uint8) * 50, widths)
    return encoded(Image.fromarray(np.tile(row, (height, 1))))


def test_the_shorter_side_fits_and_the_centre_is_kept() -> None:
    wide = Image.open(io.BytesIO(stripes([100, 50, 100], 50)))
    whole = np.asarray(wide.resize((40, 8), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(decoder((8, 8), channels=1)(encoded(wide))[0] - whole[:, 16:24]).max() <= 1
    assert np.abs(decoder((8, 24), channels=1)(encoded(wide))[0] - whole[:, 8:32]).max() <= 1
    tall = encoded(wide.transpose(Image.Transpose.TRANSPOSE))
    assert np.abs(decoder((8, 8), channels=1)(tall)[0].T - whole[:, 16:24]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (8, 8), (7, 100)])
def test_any_size_becomes_the_resolution(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (7, 8, 9)))
    for crop in ("center", "random"):
        pixels = decoder((8, 16), crop=crop)(data)
        assert pixels.shape[1] >= 8 and pixels.shape[2] >= 16 and pixels.nbytes <= decoder((8, 16), crop=crop).max_bytes
        assert np.all(pixels == np.array([7, 8, 9])[:, None, None])


def test_a_random_crop_keeps_what_it_chooses_from() -> None:
    assert decoder(crop="random", channels=1)(stripes([50, 50, 50], 50)).shape == (1, 8, 24)
    # A panorama keeps its middle, as wide as four crops.
    assert decoder(crop="random", channels=1)(stripes([1000, 100, 1000], 50)).shape == (1, 8, 32)


def test_random_crops_reach_both_ends() -> None:
    assert [crop_origin(int(share * 2**32), 10, 8) for share in (0.0, 0.34, 0.67, 1 - 2**-32)] == [0, 1, 2, 2]
    assert crop_origin(2**32 - 1, 8, 8) == 0 and crop_origin(CENTRE, 11, 8) == 2


def test_damaged_files_are_told_in_one_line(tmp_path: Path, garments: list[Image.Image]) -> None:
    whole = encoded(garments[0], "JPEG")
    cases = {
        b"": "an empty file",
        b"a text named .png": "not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n": "not an image",  # would run Ghostscript
        whole[:-100]: "image file is truncated",
        encoded(garments[0])[:60]: "",
    }
    for data, reason in cases.items():
        with pytest.raises(BrokenImage) as raised:
            decoder()(data)
        assert str(raised.value).startswith(reason) and len(str(raised.value).splitlines()) == 1
    with pytest.raises(BrokenImage, match=r"^No such file or directory$"):
        decoder()(tmp_path / "gone.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_random_damage_breaks_nothing_else(format: str, garments: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    whole = encoded(garments[0].convert("RGB"), format, **({} if format in ("BMP", "GIF") else {"exif": exif}))
    outcomes = set()
    for _ in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(min(len(data), rng.choice([300, len(data)])), size=rng.integers(1, 6))
        data[places] = rng.integers(256, size=len(places))
        try:
            outcomes.add(decoder()(data.tobytes()).shape)
        except BrokenImage:
            outcomes.add("broken")
    assert "broken" in outcomes and outcomes <= {"broken", (3, 8, 8)}


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png_bomb(13_000)
    assert len(bomb) < 100_000
    started = time.process_time()
    with pytest.raises(BrokenImage, match=r"^169 megapixels, more than dataset.max_pixels=89478485$"):
        decoder()(bomb)
    assert time.process_time() - started < 0.05  # decoding it takes half a second
    # The limit is the user's, not Pillow's.
    assert np.all(decoder(channels=1, max_pixels=200_000_000)(bomb) == 0)
