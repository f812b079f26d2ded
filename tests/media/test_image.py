"""Still pictures: upright, exact where the format is, with all that belongs to them; what would
lose is refused."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from io import BytesIO

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import get_sampling

from musetalk_enhance.errors import ConfigError, FrameError, MediaError
from musetalk_enhance.media.image import (
    IMAGE_EXTENSIONS,
    StillImage,
    decode_image,
    encode_image,
    image_size,
    losses_in,
)

pytestmark = pytest.mark.filterwarnings("error")

PILLOW = float(".".join(PIL.__version__.split(".")[:2]))
ICC = bytes(16) + b"RGB " + bytes(range(256)) * 300  # 77 kB: over one segment of a JPEG


def colours(width=24, height=16) -> np.ndarray:
    """RGB, no two corners alike, smooth enough for JPEG."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.rint(np.stack([20 + 200 * x, 30 + 180 * y, 200 - 150 * x * y], axis=-1)).astype(
        np.uint8
    )


def file(image, kind="PNG", **options) -> bytes:
    stream = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int | None = None, order="<", kind=3) -> bytes:
    """Camera, artist, a date in the sub-IFD and a maker's note that nobody can parse, laid out by
    hand."""
    entries = [(0x010F, 2, b"Camera\0")]
    if orientation is not None:
        entries.append(
            (0x0112, kind, struct.pack(order + ("H" if kind == 3 else "I"), orientation))
        )
    entries += [(0x013B, 2, b"A. Painter\0"), (0x8769, 4, None)]
    sub = [(0x9003, 2, b"2020:02:02 20:20:20\0"), (0x927C, 7, bytes(range(256)))]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    start = 8 + 2 + 12 * len(entries) + 4
    first, tail = ifd(entries, start, order)
    at = start + len(tail)
    second, rest = ifd(sub, at + 2 + 12 * len(sub) + 4, order)
    return (
        b"Exif\0\0"
        + head
        + first.replace(b"LINK", struct.pack(order + "I", at))
        + tail
        + second
        + rest
    )


def ifd(entries, at, order) -> tuple[bytes, bytes]:
    sizes, body, tail = {2: 1, 3: 2, 4: 4, 7: 1}, struct.pack(order + "H", len(entries)), b""
    for tag, kind, value in entries:
        count = 1 if value is None else len(value) // sizes[kind]
        if value is None:
            field = b"LINK"
        elif len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field, tail = (
                struct.pack(order + "I", at + len(tail)),
                tail + value + b"\0" * (len(value) % 2),
            )
        body += struct.pack(order + "HHI", tag, kind, count) + field
    return body + bytes(4), tail


def picture(**options) -> StillImage:
    return StillImage(np.ascontiguousarray(colours()[..., ::-1]), **options)


def read(data: bytes) -> StillImage:
    return decode_image(data, "picture")


def size(tmp_path, data: bytes) -> tuple[int, int]:
    (tmp_path / "sized").write_bytes(data)
    return image_size(tmp_path / "sized")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Of a PNG, with their check sums proven."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert data[at + 8 + length : at + 12 + length] == struct.pack(
            ">I", zlib.crc32(kind + body)
        )
        found.append((kind, body))
        at += 12 + length
    return found


def reordered(data: bytes, first: bytes, then: bytes) -> bytes:
    """A PNG whose chunk `first` stands behind `then`."""
    parts = chunks(data)
    moved = [part for part in parts if part[0] == first]
    kept = [part for part in parts if part[0] != first]
    at = [kind for kind, _ in kept].index(then) + 1
    parts = kept[:at] + moved + kept[at:]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_all_orientations_stand_upright(tmp_path, turn, order):
    data = file(colours(), exif=exif(turn, order))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    got = read(data)
    assert np.array_equal(got.bgr[..., ::-1], upright)
    assert got.bgr.flags.c_contiguous and got.bgr.flags.writeable
    assert got.exif == exif(1, order)
    assert size(tmp_path, data) == got.size_wh == upright.shape[1::-1]


def test_the_sixth_orientation_by_hand():
    """EXIF: with 6, row 0 of the file is the right edge of the scene, column 0 its top."""
    stored = np.array([[[10, 0, 0], [20, 0, 0]]], np.uint8)
    got = read(file(stored, exif=exif(6)))
    assert got.bgr[:, :, 2].tolist() == [[10], [20]]
    stored = np.array([[[10, 0, 0]], [[20, 0, 0]]], np.uint8)
    assert read(file(stored, exif=exif(6))).bgr[:, :, 2].tolist() == [[20, 10]]


@pytest.mark.parametrize("turn", [2, 3, 6, 7])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_orientation_in_other_formats(tmp_path, kind, turn):
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: turn}
    else:
        options["exif"] = exif(turn) if kind == "JPEG" else exif(turn)[6:]
    data = file(colours(), kind, **options)
    plain = file(colours(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(
        Image.open(BytesIO(file(np.asarray(Image.open(BytesIO(plain))), exif=exif(turn))))
    )
    got = read(data)
    assert np.array_equal(got.bgr[..., ::-1], np.asarray(upright))
    assert size(tmp_path, data) == got.size_wh
    assert read(encode_image(got, ".tif")).size_wh == got.size_wh  # nothing is turned twice


def test_alpha_is_turned_along():
    rgba = np.dstack((colours(), colours()[..., 0]))
    got = read(file(rgba, exif=exif(8)))
    assert np.array_equal(got.alpha, got.bgr[..., 2])


def test_orientation_as_a_long_and_impossible_ones():
    assert read(file(colours(), exif=exif(6, kind=4))).size_wh == (16, 24)
    assert read(file(colours(), exif=exif(6, ">", kind=4))).exif == exif(1, ">", kind=4)
    for turn in (0, 9, 60000):
        got = read(file(colours(), exif=exif(turn)))
        assert got.size_wh == (24, 16) and got.exif == exif(1)


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    data = reordered(file(colours(), exif=exif(6)), b"eXIf", b"IDAT")
    assert read(data).size_wh == size(tmp_path, data) == (16, 24)
    assert read(data).exif == exif(1)


def test_exif_as_imagemagick_writes_it(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n", zip=True)
    data = file(colours(), pnginfo=text)
    assert read(data).exif == exif(1)
    assert read(data).size_wh == size(tmp_path, data) == (16, 24)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        exif(6)[6:40],
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(40),
        b"\0" * 80,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_garbage_instead_of_exif_is_dropped(tmp_path, kind, garbage):
    if PILLOW < 10 and kind == "JPEG" and garbage == b"II*\0":
        pytest.skip("Pillow itself trips over it before version 10")
    block = garbage if kind == "WEBP" else b"Exif\0\0" + garbage
    data = file(colours(), kind, exif=block)
    got = read(data)
    assert got.exif is None and got.size_wh == size(tmp_path, data) == (24, 16)


def test_tags_of_a_tiff_that_cannot_be_written_again_are_dropped(monkeypatch):
    def broken(self, offset=8):
        raise struct.error

    data = encode_image(picture(exif=exif(1)), ".tif")
    monkeypatch.setattr(Image.Exif, "tobytes", broken)
    assert read(data).exif is None and np.array_equal(read(data).bgr, picture().bgr)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_profile_and_exif_are_kept_to_the_byte(suffix, order):
    got = read(encode_image(picture(icc=ICC, exif=exif(1, order)), suffix))
    assert got.icc == ICC and got.exif == exif(1, order)


def test_a_tiff_keeps_what_exif_says():
    source = picture(icc=ICC, exif=exif(1))
    first = encode_image(source, ".tif")
    got = read(first)
    assert got.icc == ICC
    tags = Image.Exif()
    tags.load(got.exif)
    assert (tags[0x010F], tags[0x013B]) == ("Camera", "A. Painter")
    assert tags.get_ifd(0x8769) == {0x9003: "2020:02:02 20:20:20", 0x927C: bytes(range(256))}
    assert read(encode_image(got, ".tiff")).exif == got.exif
    jpeg = read(encode_image(got, ".jpg"))
    assert (jpeg.exif, jpeg.icc) == (got.exif, ICC)


def test_sizes_in_exif_do_not_spoil_a_tiff():
    """EXIF of a camera may state the size of its own picture; that of the file counts."""
    tags = Image.Exif()
    tags[0x0100], tags[0x0101], tags[0x0103], tags[0x010F] = 9999, 7, 6, "Camera"
    got = read(encode_image(picture(exif=tags.tobytes()), ".tif"))
    assert np.array_equal(got.bgr, picture().bgr)
    kept = Image.Exif()
    kept.load(got.exif)
    assert dict(kept) == {0x010F: "Camera"}


def test_exif_that_pillow_cannot_parse_leaves_a_tiff_without(monkeypatch):
    def broken(self, data):
        raise ZeroDivisionError

    monkeypatch.setattr(Image.Exif, "load", broken)
    data = encode_image(picture(exif=exif(1), icc=ICC), ".tif")
    monkeypatch.undo()
    assert read(data).exif is None and read(data).icc == ICC


def test_exif_too_long_for_a_jpeg_is_left_out_there_alone():
    long = exif(1) + bytes(70000)
    assert read(encode_image(picture(exif=long), ".jpg")).exif is None
    assert read(encode_image(picture(exif=long), ".png")).exif == long


@pytest.mark.parametrize(
    ("suffix", "lossless"), [(".png", False), (".webp", True), (".tif", False), (".TIFF", False)]
)
def test_alpha_and_hidden_colours_come_back_exactly(rng, suffix, lossless):
    bgr, alpha = rng.integers(0, 256, (9, 7, 3), np.uint8), rng.integers(0, 256, (9, 7), np.uint8)
    alpha[:4] = 0
    got = read(encode_image(StillImage(bgr, alpha, lossless=lossless), suffix))
    if PILLOW < 9.4 and lossless:
        bgr[:4] = 0  # which had no option `exact`
    assert np.array_equal(got.bgr, bgr) and np.array_equal(got.alpha, alpha)
    assert got.bgr.flags.c_contiguous and got.alpha.flags.c_contiguous and got.alpha.flags.writeable


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_laid_over_white_where_the_format_has_none(suffix):
    bgr = np.full((16, 24, 3), (0, 0, 200), np.uint8)
    alpha = np.zeros((16, 24), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 51, 255  # 51 is a fifth
    got = read(encode_image(StillImage(bgr, alpha), suffix, quality=100))
    assert got.alpha is None
    for column, color in ((2, (255, 255, 255)), (12, (204, 204, 244)), (22, (0, 0, 200))):
        assert np.abs(got.bgr[:, column].astype(int) - color).max() <= (
            2 if suffix == ".jpg" else 0
        )


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_grey_stays_grey(mode, suffix):
    grey = Image.fromarray(colours()[..., 0]).convert(mode)
    got = read(file(grey))
    assert got.gray
    assert np.array_equal(got.bgr, np.repeat(np.asarray(grey.convert("L"))[..., None], 3, axis=2))
    back = Image.open(BytesIO(encode_image(got, suffix)))
    assert back.mode == ("LA" if mode == "LA" and suffix in (".png", ".tif") else "L")
    if suffix != ".jpg":
        assert np.array_equal(np.asarray(back.convert("L")), got.bgr[..., 0])


def test_grey_into_webp_has_no_colour_and_no_grey_profile():
    profile = ICC.replace(b"RGB ", b"GRAY")
    tinted = StillImage(picture().bgr, icc=profile, gray=True, lossless=True)
    got = read(encode_image(tinted, ".webp"))
    assert np.ptp(got.bgr, axis=2).max() == 0 and got.icc is None
    assert read(encode_image(tinted, ".png")).icc == profile


def test_a_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    got = read(file(image, transparency=b"\x00\x80\xff"))
    assert got.bgr[0].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 0]]
    assert got.alpha[0].tolist() == [0, 128, 255]
    assert read(file(image)).alpha is None
    assert read(file(image, "GIF", transparency=1)).alpha[0].tolist() == [255, 0, 255]


def test_one_colour_told_transparent():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    got = read(file(image, transparency=(4, 5, 6)))
    assert got.bgr[0].tolist() == [[3, 2, 1], [6, 5, 4]] and got.alpha[0].tolist() == [255, 0]
    got = read(file(Image.fromarray(np.array([[7, 9]], np.uint8)), transparency=7))
    assert got.gray and got.bgr[0, :, 0].tolist() == [7, 9] and got.alpha[0].tolist() == [0, 255]


def cmyk_profile() -> bytes:
    """An ICC profile for CMYK by ICC.1:2001-04: a table (lut8) of two points a channel to Lab.

    Lightness falls with the sum of the inks, a and b with cyan, magenta and yellow.
    """
    nodes = np.indices((2, 2, 2, 2)).reshape(4, -1).T.astype(float)
    c, m, y, k = nodes.T
    light = 100 * (1 - k) * (1 - 0.25 * (c + m + y))
    a, b = (1 - k) * (60 * m - 40 * c), (1 - k) * (70 * y - 40 * c)
    lab = np.stack((light * 2.55, a + 128, b + 128), 1).round().clip(0, 255).astype(np.uint8)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(1 << 16 if at % 4 == 0 else 0 for at in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + 4 * ramp + lab.tobytes() + 3 * ramp
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    parts = {b"desc": text, b"wtpt": white, b"A2B0": table}
    parts = {tag: body + bytes(-len(body) % 4) for tag, body in parts.items()}
    at, listed = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts))
    for tag, body in parts.items():
        listed += tag + struct.pack(">II", at, len(body))
        at += len(body)
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I4sI4s4s4s", at, bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48)
    return head + listed + b"".join(parts.values())


def inks() -> Image.Image:
    cmyk = np.zeros((16, 24, 4), np.uint8)
    cmyk[:, 8:16, 1], cmyk[:, 16:, 3] = 255, 128  # white, magenta, half black
    return Image.frombytes("CMYK", (24, 16), cmyk.tobytes())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_srgb_through_its_profile(kind):
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    got = read(file(inks(), kind, icc_profile=cmyk_profile(), **options))
    assert got.icc is None and not got.gray and got.alpha is None
    assert "the colors of CMYK, which become sRGB" in losses_in(got, ".jpg")
    # Lab (75, 60, 0) in sRGB by the formulas of CIE 15 and IEC 61966-2-1 is (255, 134, 187),
    # clipped in red; L 50 is gray 119. The naive formula has (255, 0, 255) and 127.
    for column, color in ((3, (255, 255, 255)), (12, (187, 134, 255)), (20, (119, 119, 119))):
        assert np.abs(got.bgr[:, column].astype(int) - color).max() <= 12, column


@pytest.mark.parametrize("icc", [None, b"no profile", ICC.replace(b"RGB ", b"CMYK")])
def test_cmyk_without_a_profile_is_refused_by_name(icc):
    with pytest.raises(MediaError, match="picture: is CMYK with.*Convert it to RGB first"):
        read(file(inks(), "TIFF", **({"icc_profile": icc} if icc else {})))


def test_lab_becomes_rgb_without_its_profile():
    lab = file(
        Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF", icc_profile=ICC.replace(b"RGB ", b"Lab ")
    )
    assert read(lab).bgr.min() >= 253 and read(lab).icc is None  # L 100, a and b 0: white


@pytest.mark.parametrize(
    ("sampling", "turn", "expected"), [(0, 1, 0), (1, 1, 1), (2, 1, 2), (1, 6, 0), (2, 6, 2)]
)
def test_subsampling_of_a_jpeg_is_kept(sampling, turn, expected):
    got = read(file(colours(), "JPEG", subsampling=sampling, exif=exif(turn)))
    assert (got.format, got.subsampling) == ("JPEG", expected)
    assert get_sampling(Image.open(BytesIO(encode_image(got, ".jpeg")))) == expected


def test_other_sources_become_jpegs_with_full_colour_of_the_quality_asked():
    assert picture().subsampling is None
    best, worst = (encode_image(picture(), ".jpg", quality=quality) for quality in (95, 20))
    assert get_sampling(Image.open(BytesIO(best))) == 0
    assert np.abs(read(best).bgr.astype(int) - picture().bgr).mean() < 1 and len(worst) < len(best)


def test_a_jpeg_with_a_preview_behind_it_is_a_jpeg(tmp_path):
    """Telephones write MPO: a JPEG, followed by a second picture."""
    data = file(colours(48, 32), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(BytesIO(data)).format == "MPO"
    got = read(data)
    assert (got.format, got.size_wh, got.subsampling) == ("JPEG", (48, 32), 2)
    assert size(tmp_path, data) == (48, 32)


def test_webp_stays_without_loss_where_it_was():
    for lossless in (True, False):
        # the simple and the extended layout
        for options in ({}, {"exif": exif(1)[6:], "icc_profile": ICC}):
            got = read(file(colours(), "WEBP", lossless=lossless, **options))
            assert got.lossless is lossless
            again = encode_image(got, ".webp")
            assert read(again).lossless is lossless
            assert np.array_equal(read(again).bgr, got.bgr) is lossless


@pytest.mark.parametrize("suffix", IMAGE_EXTENSIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 17)])
def test_every_ending_takes_every_size_and_gives_the_same_bytes_again(tmp_path, rng, suffix, shape):
    source = StillImage(rng.integers(0, 256, (*shape, 3), np.uint8), icc=ICC, exif=exif(1))
    kept = source.bgr.copy()
    data = encode_image(source, suffix)
    assert encode_image(source, suffix.upper()) == data
    assert read(data).size_wh == size(tmp_path, data) == (shape[1], shape[0])
    assert np.array_equal(source.bgr, kept)
    if suffix in (".png", ".bmp", ".tif", ".tiff"):
        assert np.array_equal(read(data).bgr, kept)


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_others_read_our_png(rng, grey, alpha):
    bgr = rng.integers(0, 256, (13, 11, 1 if grey else 3), np.uint8).repeat(
        3 if grey else 1, axis=2
    )
    mask = rng.integers(0, 256, (13, 11), np.uint8) if alpha else None
    data = encode_image(StillImage(bgr, mask, icc=ICC, exif=exif(1), gray=grey), ".png")
    assert [kind for kind, _ in chunks(data)] == [b"IHDR", b"iCCP", b"eXIf", b"IDAT", b"IEND"]
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), bgr)
    if alpha:
        assert np.array_equal(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., 3], mask
        )


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3), (4, 4, 4)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_refused(shape, suffix):
    data = cv2.imencode(suffix, np.full(shape, 40000, np.uint16))[1].tobytes()
    with pytest.raises(MediaError, match="16 bits per channel.*Save it with 8"):
        decode_image(data, "deep" + suffix)


@pytest.mark.parametrize(("mode", "bits"), [("I;16", 16), ("I", 32), ("F", 32)])
def test_deep_grey_tiffs_are_refused(mode, bits):
    with pytest.raises(MediaError, match=f"{bits} bits per channel"):
        read(file(Image.new(mode, (4, 4)), "TIFF"))


def test_sixteen_bits_a_pixel_are_not_sixteen_a_channel():
    """A BMP of 5, 6 and 5 bits, by hand: pure red, green and blue."""
    pixels = struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    start = 14 + len(head) + len(masks)
    data = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + masks + pixels
    assert read(data).bgr[0, :3].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 0]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = file(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="has 3 frames or pages"):
        read(data)


@pytest.mark.parametrize("suffix", IMAGE_EXTENSIONS)
def test_a_truncated_file_is_refused(rng, suffix):
    data = encode_image(
        StillImage(rng.integers(0, 256, (64, 64, 3), np.uint8), exif=exif(1)), suffix
    )
    for share in (0.02, 0.3, 0.7, 0.9):
        with pytest.raises(MediaError, match="photo"):
            decode_image(data[: int(len(data) * share)], "photo" + suffix)


def test_a_damaged_file_raises_nothing_else(rng):
    """Bytes turned over at random: the picture comes or `MediaError`, never another error or a
    warning."""
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif"):
        data = encode_image(
            StillImage(colours()[..., ::-1].copy(), icc=ICC[:300], exif=exif(6)), suffix
        )
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 600), 4):
                broken[at] = rng.integers(0, 256)
            try:
                read(bytes(broken))
            except MediaError:
                pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html></html>",
        b"\0" * 500,
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"P6 1 1 255 abc",
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, data):
    (tmp_path / "page.jpg").write_bytes(data)
    with pytest.raises(MediaError, match="page.jpg.*(is empty|is not a readable image)") as caught:
        decode_image(data, tmp_path / "page.jpg")
    assert caught.value.path == tmp_path / "page.jpg"
    with pytest.raises(MediaError, match="page.jpg.*is not a readable image"):
        image_size(tmp_path / "page.jpg")


def test_a_decompression_bomb_is_refused(tmp_path):
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    with pytest.raises(MediaError, match="too many pixels"):
        read(data)
    with pytest.raises(MediaError, match="too many pixels"):
        size(tmp_path, data)


def test_a_large_picture_under_the_limit_gives_no_warning(tmp_path, monkeypatch):
    # 384 pixels: Pillow warns from here, refuses from 600
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert read(file(colours())).size_wh == size(tmp_path, file(colours())) == (24, 16)


def test_warning_filters_survive_many_threads():
    filters, data = list(warnings.filters), file(colours(), "TIFF")
    threads = [threading.Thread(target=lambda: [read(data) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == filters


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        image_size(tmp_path / "none.png")
    with pytest.raises(MediaError, match=r"cannot be read \("):
        image_size(tmp_path)


def test_picture_size_reads_the_head_alone(tmp_path, rng):
    for suffix in (".png", ".jpg", ".webp", ".bmp"):
        data = encode_image(StillImage(rng.integers(0, 256, (300, 200, 3), np.uint8)), suffix)
        if suffix != ".webp":  # of which Pillow wants all
            data = data[: len(data) // 2]
        assert size(tmp_path, data) == (200, 300)


def test_replaced_pixels_keep_the_rest():
    source = picture(
        alpha=colours()[..., 0].copy(),
        format="JPEG",
        icc=ICC,
        exif=exif(1),
        gray=True,
        subsampling=2,
    )
    double = cv2.resize(source.bgr, (48, 32))
    got = source.replace_pixels(double[:, ::-1])
    assert got.size_wh == (48, 32) and got.alpha.shape == (32, 48) and got.bgr.flags.c_contiguous
    assert (got.format, got.icc, got.exif, got.gray, got.subsampling) == (
        "JPEG",
        ICC,
        exif(1),
        True,
        2,
    )
    assert np.abs(got.alpha[::2, ::2].astype(int) - source.alpha).max() <= 8  # 8 is a step across
    assert source.replace_pixels(source.bgr).alpha is source.alpha
    own = np.full((32, 48), 9, np.uint8)
    assert np.array_equal(source.replace_pixels(double, own).alpha, own)
    assert source.replace_pixels(source.bgr[::2, ::2]).alpha.shape == (8, 12)


def test_a_picture_is_checked():
    with pytest.raises(FrameError, match="uint8"):
        StillImage(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(FrameError, match="uint8"):
        StillImage(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(FrameError, match="alpha"):
        picture(alpha=np.zeros((4, 4), np.uint8))


def test_impossible_wishes_are_named():
    with pytest.raises(ConfigError, match=r"'.gif'.*\.jpg"):
        encode_image(picture(), ".gif")
    for quality in (0, 101):
        with pytest.raises(ConfigError, match="quality"):
            encode_image(picture(), ".jpg", quality=quality)
    long = StillImage(np.zeros((1, 65501, 3), np.uint8))
    for suffix in (".jpg", ".webp"):
        with pytest.raises(FrameError, match="65501x1 pixels; expected at most"):
            encode_image(long, suffix)
    assert read(encode_image(long, ".png")).size_wh == (65501, 1)


def test_real_photographs_go_through(shared, tmp_path):
    paths = sorted((shared / "data" / "portraits").glob("*.jpg"))[:4]
    assert paths
    for path in paths:
        got = read(path.read_bytes())
        assert image_size(path) == got.size_wh
        assert np.array_equal(read(encode_image(got, ".png")).bgr, got.bgr)
        again = read(encode_image(got, ".jpg"))
        assert (
            np.abs(again.bgr.astype(int) - got.bgr).mean() < 2
            and again.subsampling == got.subsampling
        )


def test_a_limit_of_pixels_holds_before_they_are_decoded():
    data = encode_image(StillImage(np.zeros((20, 30, 3), np.uint8)), ".png")
    assert decode_image(data, "a.png", max_pixels=600).size_wh == (30, 20)
    with pytest.raises(MediaError, match="30x20 pixels; at most 599"):
        decode_image(data[:60], "a.png", max_pixels=599)
