"""What a file says of its numbers besides its mode: profiles, polarity, which grey is transparent, blank alpha."""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encoded
from PIL import Image, ImageCms, PngImagePlugin

from ddpm_train.data.decode import BrokenImage, Decoder

# Columns of the D50-adapted matrices from linear RGB to XYZ (Lindbloom; CSS Color 4), as ICC profiles hold them.
DISPLAY_P3 = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def decoder(channels: int = 3) -> Decoder:
    return Decoder((8, 8), channels, (255, 255, 255), "center", 89_478_485)


def profile(**primaries: tuple[float, float, float]) -> bytes:
    """sRGB's profile with other primaries."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(struct.unpack_from(">I", data, 128)[0]):
        signature, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * entry)
        if signature in DISPLAY_P3 and primaries:
            values = primaries[signature.decode()]
            struct.pack_into(">3i", data, offset + 8, *(round(value * 65536) for value in values))
    return bytes(data)


P3 = profile(**{name.decode(): values for name, values in DISPLAY_P3.items()})
# Display P3 (200, 50, 50) in sRGB: linearise, multiply by P3's matrix and by the inverse of sRGB's, encode.
P3_RED, SRGB_RED = (200, 50, 50), (218, 24, 40)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_are_those_of_the_profile(format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    for size in ((8, 8), (100, 40)):
        data = encoded(Image.new("RGB", size, P3_RED), format, icc_profile=P3, **options)
        assert np.abs(decoder()(data)[:, 0, 0] - np.array(SRGB_RED)).max() <= 2
        grey = np.rint(np.array(SRGB_RED) @ (0.299, 0.587, 0.114))
        assert np.abs(decoder(1)(data)[0, 0, 0] - grey) <= 2


def in_jpeg_2000() -> bytes:
    """With the profile in place of the number of its colours (ISO/IEC 15444-1, annex I)."""
    data = encoded(Image.new("RGB", (8, 8), P3_RED), "JPEG2000")
    header, box = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    length = int.from_bytes(data[header : header + 4]) - 15 + 11 + len(P3)
    profiled = struct.pack(">I4s3B", 11 + len(P3), b"colr", 2, 0, 0) + P3
    return data[:header] + length.to_bytes(4) + data[header + 4 : box] + profiled + data[box + 15 :]


def boxed(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_a_palette_of_inks() -> None:
    """In JPEG 2000; Pillow takes the inks for colours."""
    data = encoded(Image.new("L", (8, 8), 1), "JPEG2000")
    header, colours = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    red, cyan = (0, 255, 255, 0), (255, 0, 0, 0)
    palette = boxed(b"pclr", struct.pack(">HB4B", 2, 4, 7, 7, 7, 7) + bytes((*cyan, *red)))
    mapped = boxed(b"cmap", b"".join(struct.pack(">HBB", 0, 1, ink) for ink in range(4)))
    inks = boxed(b"colr", struct.pack(">3BI", 1, 0, 0, 12))
    content = data[header + 8 : colours] + inks + palette + mapped
    assert decoder()(data[:header] + boxed(b"jp2h", content) + data[colours + 15 :])[:, 0, 0].tolist() == [255, 0, 0]


def in_bmp() -> bytes:
    """Behind the pixels, as version 5 of the header tells."""
    rows = (bytes(P3_RED[::-1]) * 2 + bytes(2)) * 2
    header = struct.pack("<I2i2H6I", 124, 2, 2, 1, 24, 0, len(rows), 0, 0, 0, 0) + bytes(16) + b"DEBM" + bytes(52)
    header += struct.pack("<3I", 124 + len(rows), len(P3), 0)
    return struct.pack("<2s3I", b"BM", 138 + len(rows) + len(P3), 0, 138) + header + rows + P3


@pytest.mark.parametrize("written", [in_jpeg_2000, in_bmp])
def test_profiles_that_pillow_does_not_read(written: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(written())
    for picture in (written(), tmp_path / "picture"):
        assert np.abs(decoder()(picture)[:, 0, 0] - np.array(SRGB_RED)).max() <= 2


def test_a_profile_leaves_transparency_alone() -> None:
    half = encoded(Image.new("RGBA", (8, 8), (*P3_RED, 128)), icc_profile=P3)
    assert np.abs(decoder(4)(half)[:, 0, 0] - np.array((*SRGB_RED, 128))).max() <= 2
    clear = encoded(Image.new("RGB", (8, 8), P3_RED), icc_profile=P3, transparency=P3_RED)
    assert decoder(4)(clear)[3].max() == 0 and decoder()(clear).min() == 255


def test_profiles_of_palettes_and_of_greys_with_alpha() -> None:
    for channels, expected in {3: SRGB_RED, 4: (*SRGB_RED, 255)}.items():
        palette = encoded(Image.new("RGB", (100, 40), P3_RED).quantize(), icc_profile=P3)
        assert np.abs(decoder(channels)(palette)[:, 0, 0].astype(int) - expected).max() <= 2
    linear = grey_profile()  # half of the light is 188 in sRGB (IEC 61966-2-1)
    greys = (Image.new("LA", (8, 8), (128, 100)), Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)))
    for grey, alpha in zip(greys, (100, 255), strict=True):
        assert decoder(4)(encoded(grey, icc_profile=linear))[:, 0, 0].tolist() == [188, 188, 188, alpha]
    clear = encoded(Image.new("L", (8, 8), 128), icc_profile=linear, transparency=128)
    assert decoder(4)(clear)[:, 0, 0].tolist() == [188, 188, 188, 0]


def grey_profile() -> bytes:
    """Of greys that are amounts of light."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    parts = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(79), b"cprt": b"text" + bytes(8)}
    parts |= {b"wtpt": b"XYZ " + bytes(4) + white, b"kTRC": b"curv" + bytes(8)}
    return icc(b"mntrGRAYXYZ ", parts)


CODE_POINTS = {
    (12, 13): SRGB_RED,
    (9, 1): (248, 0, 41),  # BT.2020 (200, 50, 50), by the same way as P3_RED
    (1, 13): P3_RED,
    (2, 2): P3_RED,
    (1, 16): "high dynamic range, PQ (convert to sRGB)",
    (9, 18): "high dynamic range, HLG (convert to sRGB)",
    (10, 8): "colours with the code points 10 and 8 (convert to sRGB)",
}


@pytest.mark.parametrize("format", ["PNG", "palette", "AVIF"])
@pytest.mark.parametrize(("points", "expected"), CODE_POINTS.items())
def test_colours_that_a_file_names_by_numbers(
    format: str, points: tuple[int, int], expected: object, tmp_path: Path
) -> None:
    """ITU-T H.273: primaries 12 are Display P3's, 9 BT.2020's; transfer 16 is PQ, 18 HLG. They stand above a gamma."""
    image = Image.new("RGB", (64, 64), P3_RED)
    if format == "AVIF":
        data = encoded(image, "AVIF", quality=100, subsampling="4:4:4")
        assert data.count(b"colrnclx") == 1
        place = data.index(b"colrnclx") + 8
        data = data[:place] + struct.pack(">HH", *points) + data[place + 4 :]
    else:
        data = encoded(image if format == "PNG" else image.quantize())
        light = chunk(b"gAMA", struct.pack(">I", 100000 if points != (2, 2) else 45455))
        data = data[:33] + light + chunk(b"cICP", bytes((*points, 0, 1))) + data[33:]
    (file := tmp_path / "image").write_bytes(data)
    for encoded_image in (data, file):
        if isinstance(expected, str):
            with pytest.raises(BrokenImage, match=f"^{re.escape(expected)}$"):
                decoder()(encoded_image)
        else:
            assert np.abs(decoder()(encoded_image)[:, 0, 0].astype(int) - expected).max() <= 2


def test_code_points_stand_above_a_profile() -> None:
    data = encoded(Image.new("RGB", (8, 8), P3_RED), icc_profile=P3)
    assert decoder()(data[:33] + chunk(b"cICP", bytes((1, 13, 0, 1))) + data[33:])[:, 0, 0].tolist() == [*P3_RED]


def test_srgb_profiles_and_useless_ones_change_nothing() -> None:
    ramp = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    plain = decoder()(encoded(Image.fromarray(ramp)))
    for useless in (profile(), b"no profile", P3[:200]):
        assert np.array_equal(decoder()(encoded(Image.fromarray(ramp), icc_profile=useless)), plain)
    grey = Image.fromarray(ramp[..., 0])
    assert np.array_equal(decoder()(encoded(grey, icc_profile=P3)), decoder()(encoded(grey)))  # of colours, on a grey


def press() -> bytes:
    """A CMYK profile whose inks, all grey, take a quarter of the lightness each, and black all of it."""
    inks = [(a + b + c, k) for a in (0, 1) for b in (0, 1) for c in (0, 1) for k in (0, 1)]
    lab = b"".join(bytes((round(255 * (1 - k) * (1 - 0.25 * colours)), 128, 128)) for colours, k in inks)
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    straight, white = bytes(range(256)), struct.pack(">3i", 63190, 65536, 54061)
    table = b"mft1" + bytes((0, 0, 0, 0, 4, 3, 2, 0)) + matrix + 4 * straight + lab + 3 * straight
    parts = {b"A2B0": table, b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(79)}
    parts |= {b"wtpt": b"XYZ " + bytes(4) + white, b"cprt": b"text" + bytes(8)}
    return icc(b"prtrCMYKLab ", parts)


def icc(kind: bytes, parts: dict[bytes, bytes]) -> bytes:
    """A profile of that class, colours and connection space."""
    directory, body = struct.pack(">I", len(parts)), b""
    for name, part in parts.items():
        directory += name + struct.pack(">II", 132 + 12 * len(parts) + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = b"lcms\2\x10\0\0" + kind + bytes(12) + b"acsp" + bytes(28) + white
    data = header.ljust(124, b"\0") + directory + body
    return struct.pack(">I", 4 + len(data)) + data


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_are_those_of_the_profile(format: str) -> None:
    """L* 75, 50 and 25 are 185, 119 and 59 in sRGB; without a profile cyan is (0, 255, 255)."""
    for inks, grey in {(0, 0, 0, 0): 255, (255, 0, 0, 0): 185, (255, 255, 0, 0): 119, (255, 255, 255, 0): 59}.items():
        data = encoded(Image.new("CMYK", (8, 8), inks), format, icc_profile=press())
        assert np.abs(decoder()(data).astype(int) - grey).max() <= 2
    plain = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), format)
    assert np.abs(decoder()(plain)[:, 0, 0].astype(int) - (0, 255, 255)).max() <= 2


def grey_tiff(values: np.ndarray, photometric: int) -> bytes:
    """An uncompressed grey TIFF file; photometric interpretation 0: white is 0."""
    height, width = values.shape
    bits, tags = 8 * values.itemsize, 9
    offset = 8 + 2 + 12 * tags + 4
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, offset), (277, 1), (278, height), (279, values.nbytes)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, tags) + directory + bytes(4) + values.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_may_be_zero(dtype: type) -> None:
    scale = np.iinfo(dtype).max // 255
    values = (np.arange(64).reshape(8, 8) * 4 * scale).astype(dtype)
    for photometric, expected in ((1, values // scale), (0, 255 - values // scale)):
        assert np.array_equal(decoder(1)(grey_tiff(values, photometric))[0], expected)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, row: bytes, transparent: int) -> bytes:
    """An 8 x 8 grey PNG file of equal rows, one grey of which is transparent."""
    header = struct.pack(">IIBBBBB", 8, 8, depth, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(8 * (b"\0" + row))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", transparent)) + pixels


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "greys"),
    [
        (1, b"\x0f", 1, (0, 255)),
        (2, b"\x00\x55", 1, (0, 85)),
        (4, b"\x22\x22\x55\x55", 5, (34, 85)),
        (8, b"\x22" * 4 + b"\x55" * 4, 0x55, (34, 85)),
        (16, b"\x22\x22" * 4 + b"\x55\x55" * 4, 0x5555, (34, 85)),
        (16, b"\x22\x22" * 4 + b"\x55\x54" * 4, 0x5554, (34, 85)),
    ],
)
def test_the_grey_that_is_transparent(depth: int, row: bytes, transparent: int, greys: tuple[int, int]) -> None:
    data = png(depth, row, transparent)
    expected = np.repeat([[greys[0]] * 3 + [255], [greys[1]] * 3 + [0]], 4, axis=0).T[:, None]
    assert np.array_equal(decoder(4)(data), np.repeat(expected, 8, axis=1))
    assert decoder()(data)[0, 0].tolist() == [greys[0]] * 4 + [255] * 4


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("ending", ["bmp", "tga"])
def test_a_fourth_channel_that_is_blank_is_none(ending: str, alpha: int, tmp_path: Path) -> None:
    """Many programs write nothing there; what is not blank all over is alpha."""
    file = tmp_path / f"image.{ending}"
    Image.new("RGBA", (8, 8), (200, 100, 50, alpha)).save(file)
    if ending == "bmp":  # which Pillow writes with the header that knows no alpha
        header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0)
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
        pixels = bytes((50, 100, 200, alpha)) * 64
        file.write_bytes(b"BM" + struct.pack("<IHHI", 378, 0, 0, 122) + header + masks + pixels)
    assert decoder(4)(file)[:, 0, 0].tolist() == [200, 100, 50, alpha or 255]


def test_what_begins_like_an_image_is_not_told_to_be_none() -> None:
    """Of what it does not know, Pillow says no more than that."""
    whole = encoded(Image.new("L", (64, 64)), "TIFF", compression="tiff_lzw")
    for data in (grey_tiff(np.ones((8, 8), np.uint64), 1), whole[:30]):
        with pytest.raises(BrokenImage, match=r"^damaged, or a kind of TIFF that Pillow does not read$"):
            decoder()(data)


def tiff(tags: dict[int, tuple[int, ...]], pixels: bytes) -> bytes:
    """An uncompressed TIFF file of 8 x 8 pixels."""
    every = {256: (8,), 257: (8,), 259: (1,), 277: (1,), 278: (8,), 279: (len(pixels),), 273: (0,), **tags}
    start = 8 + 2 + 12 * len(every) + 4
    planes = len(every[279])
    every[273] = (0,) * planes
    first = start + sum(4 * len(values) for values in every.values() if len(values) > 1)
    every[273] = tuple(first + plane * len(pixels) // planes for plane in range(planes))
    entries, beyond = b"", b""
    for tag, values in sorted(every.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", start + len(beyond))
        beyond += packed if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(every)) + entries + bytes(4) + beyond + pixels


def test_a_fourth_sample_that_nobody_calls_alpha() -> None:
    """TIFF: tag 338 says what it is; 2 is alpha."""
    blank, rgb = {258: (8, 8, 8, 8), 262: (2,), 277: (4,)}, (200, 50, 50)
    pixels = bytes((*rgb, 0)) * 64
    assert decoder(4)(tiff(blank, pixels))[:, 0, 0].tolist() == [*rgb, 255]
    assert decoder(4)(tiff({**blank, 338: (2,)}, pixels))[3].max() == 0


def test_planes_of_16_bits() -> None:
    """Each colour, or the only grey, for itself; Pillow reads the bytes of uncompressed ones as values of 8 bits."""
    values = [np.full(64, value, np.uint16).tobytes() for value in (100, 3000, 60000)]
    colours = {258: (16, 16, 16), 262: (2,), 277: (3,), 279: (128, 128, 128), 284: (2,)}
    assert decoder()(tiff(colours, b"".join(values)))[:, 0, 0].tolist() == [0, 11, 234]
    assert decoder(1)(tiff({258: (16,), 262: (1,), 284: (2,)}, values[2]))[0, 0, 0] == 233


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_16_bits(scale: int) -> None:
    """Some writers put their 8-bit entries there as they are."""
    palette = tuple(scale * value for channel in (200, 50, 25) for value in (channel, *range(255)))
    data = tiff({258: (8,), 262: (3,), 320: palette}, bytes(64))
    assert decoder()(data)[:, 0, 0].tolist() == [200, 50, 25]


def test_greys_of_12_bits_reach_white_at_4095() -> None:
    data = tiff({258: (12,), 262: (1,)}, b"\x64\x0f\xff" * 32)  # 0x640, 0xfff
    assert decoder(1)(data)[0, 0, :2].tolist() == [round(0x640 / 0xFFF * 255), 255]


def test_modes_that_pillow_converts_to_one_other_only() -> None:
    """CIELab and grey with premultiplied alpha, as grey and in colours."""
    lab = encoded(Image.new("RGB", (8, 8), (200, 50, 50)).convert("LAB"), "TIFF")
    for channels, expected in {1: (95,), 3: (200, 50, 50), 4: (200, 50, 50, 255)}.items():
        assert np.abs(decoder(channels)(lab)[:, 0, 0].astype(int) - expected).max() <= 2
    premultiplied = tiff({258: (8, 8), 262: (1,), 277: (2,), 338: (1,)}, bytes((50, 128)) * 64)
    for channels, expected in {1: (177,), 4: (100, 100, 100, 128)}.items():
        assert np.abs(decoder(channels)(premultiplied)[:, 0, 0].astype(int) - expected).max() <= 2


# Half of the light is 188 in sRGB (IEC 61966-2-1).
@pytest.mark.parametrize(("chunks", "expected"), [({b"gAMA": 100000}, 188), ({b"gAMA": 45455}, 128), ({}, 128)])
def test_numbers_of_a_png_file_that_are_light(chunks: dict[bytes, int], expected: int) -> None:
    for depth, row in ((8, b"\x80" * 8), (16, b"\x80\x80" * 8)):
        data = png(depth, row, 0)
        gamma = b"".join(chunk(kind, struct.pack(">I", value)) for kind, value in chunks.items())
        assert decoder()(data[:33] + gamma + data[33:])[:, 0, 0].tolist() == [expected] * 3
        assert decoder(4)(data[:33] + chunk(b"sRGB", b"\0") + gamma + data[33:])[:, 0, 0].tolist() == [128] * 3 + [255]


def test_gamma_leaves_transparency_alone() -> None:
    half = encoded(Image.new("RGBA", (8, 8), (128, 0, 255, 100)))
    data = half[:33] + chunk(b"gAMA", struct.pack(">I", 100000)) + half[33:]
    assert decoder(4)(data)[:, 0, 0].tolist() == [188, 0, 255, 100]
    palette = encoded(Image.new("RGB", (8, 8), (128, 0, 255)).quantize())
    data = palette[:33] + chunk(b"gAMA", struct.pack(">I", 100000)) + palette[33:]
    assert decoder()(data)[:, 0, 0].tolist() == [188, 0, 255]


def test_what_a_gif_file_does_not_paint_is_transparent() -> None:
    """Its first frame may be smaller than the picture; every viewer shows nothing around it."""
    whole = encoded(Image.new("P", (8, 8), 1), "GIF")
    place = whole.index(b"\x2c") + 1
    small = bytearray(encoded(Image.new("P", (4, 8), 1), "GIF"))
    small[6:8] = struct.pack("<H", 8)  # the width of the picture
    start = small.index(b"\x2c") + 1
    small[start : start + 2] = struct.pack("<H", 4)  # where the frame begins
    assert whole[place : place + 2] == b"\0\0"
    assert decoder(4)(bytes(small))[3, 0].tolist() == [0] * 4 + [255] * 4
    assert decoder()(bytes(small))[0, 0, :4].tolist() == [255] * 4


def test_a_png_file_may_hold_long_texts() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    assert decoder()(encoded(Image.new("RGB", (8, 8), (200, 50, 50)), pnginfo=texts))[:, 0, 0].tolist() == [200, 50, 50]


def test_tiff_greys_keep_their_sign() -> None:
    """SampleFormat 1 is unsigned, 2 is signed (TIFF 6.0, section 19)."""

    def stored(samples: np.ndarray, kind: int) -> bytes:
        return tiff({258: (8 * samples.itemsize,), 262: (1,), 339: (kind,)}, samples.tobytes())

    columns = np.tile(np.arange(8), (8, 1))
    for samples, kind, low, high in (
        ((columns - 4).astype(np.int8), 2, -4, 3),
        ((columns * 500_000_000).astype(np.uint32), 1, 0, 3_500_000_000),
    ):
        with pytest.raises(
            BrokenImage, match=f"^grey values from {low:g} to {re.escape(f'{high:g}')}, and nothing says which"
        ):
            decoder(1)(stored(samples, kind))
        ranged = replace(decoder(1), value_range=(low, high))
        assert ranged(stored(samples, kind))[0, 0].tolist() == np.rint(columns[0] / 7 * 255).tolist()
    assert decoder(1)(stored((columns * 30).astype(np.uint8), 1))[0, 0, 7] == 210


def test_a_transparent_colour_of_16_bits() -> None:
    color = struct.pack(">3H", 0x1234, 0x8000, 0xFFFF)
    for depth, pixel in {16: color, 8: color[::2]}.items():
        rows = zlib.compress(8 * (b"\0" + 4 * pixel + 4 * bytes(len(pixel))))
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, 2, 0, 0, 0))
        key = chunk(b"tRNS", color if depth == 16 else struct.pack(">3H", *pixel))
        data = b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert decoder(4)(data)[:, 0, [0, 7]].T.tolist() == [[0x12, 0x80, 0xFF, 0], [0, 0, 0, 255]]


def test_photos_that_tell_adobe_rgb_by_exif() -> None:
    """DCF 2.0: index R03. Adobe RGB (200, 50, 50): a gamma of 563 / 256, its matrix (Lindbloom), sRGB's inverse."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    photo = Image.new("RGB", (100, 40), P3_RED)
    options = {"quality": 100, "subsampling": 0, "exif": exif}
    assert np.abs(decoder()(encoded(photo, "JPEG", **options))[:, 0, 0].astype(int) - (232, 46, 46)).max() <= 2
    embedded = encoded(photo, "JPEG", icc_profile=P3, **options)  # which stands above it
    assert np.abs(decoder()(embedded)[:, 0, 0].astype(int) - SRGB_RED).max() <= 2
