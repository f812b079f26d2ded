"""Metadata of an image is in its copy, or is named as lost."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from musetalk_enhance.errors import MediaError
from musetalk_enhance.media.image import (
    IMAGE_EXTENSIONS,
    decode_image,
    encode_image,
    image_size,
    losses_in,
    readable_extensions,
)
from tests.media.test_image import chunks

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf>\xc3\xbc</rdf></x:xmpmeta>'
SEGMENT_XMP = b"http://ns.adobe.com/xap/1.0/\0" + XMP
WORDS = {"xmp": "XMP", "dpi": "dpi", "comments": "comment", "iptc": "IPTC", "text": "the text"}


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))


def saved(kind: str, **options) -> bytes:
    stream = BytesIO()
    image().save(stream, kind, **options)
    return stream.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, **options) -> bytes:
    data = saved("JPEG", **options)
    return data[:2] + data[2:20] + b"".join(segments) + data[20:]


def png(*more: tuple[bytes, bytes], **options) -> bytes:
    data = saved("PNG", **options)
    extra = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in more
    )
    return data[:33] + extra + data[33:]


def rich_sources() -> dict[str, bytes]:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "A. Painter", zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    text.add_text("Title", "März")
    tiff = TiffImagePlugin.ImageFileDirectory_v2()
    tiff[700], tiff.tagtype[700] = XMP, 1
    iptc = segment(0xED, b"Photoshop 3.0\0" + b"8BIM some IPTC")
    return {
        "JPEG": jpeg(segment(0xE1, SEGMENT_XMP), iptc, segment(0xFE, b"a note"), dpi=(300, 300)),
        "PNG": saved("PNG", pnginfo=text, dpi=(300, 300)),
        "WEBP": saved("WEBP", xmp=XMP),
        "TIFF": saved("TIFF", tiffinfo=tiff, dpi=(300, 300)),
        "BMP": saved("BMP", dpi=(300, 300)),
        "GIF": saved("GIF", comment=b"a note"),
    }


@pytest.mark.parametrize("suffix", IMAGE_EXTENSIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_what_a_copy_does_not_hold_is_named(kind, suffix):
    source = decode_image(rich_sources()[kind], "picture")
    before = source.metadata
    assert before.xmp == (XMP if kind not in ("BMP", "GIF") else None)
    assert (before.dpi is not None) == (kind in ("JPEG", "PNG", "TIFF", "BMP"))
    copy = decode_image(encode_image(source, suffix), "copy")
    named, after = losses_in(source, suffix), copy.metadata
    kept = {
        "xmp": before.xmp == after.xmp,
        "dpi": before.dpi is None or (after.dpi is not None and abs(after.dpi[0] - 300) < 1),
        "comments": before.comments in ((), after.comments)
        or any(b"a note" in body for _, body in after.chunks),
        "iptc": before.iptc == after.iptc,
        "text": not any(kind == b"zTXt" for kind, _ in before.chunks) or before == after,
    }
    assert {name for name, is_kept in kept.items() if not is_kept} == {
        name for name, words in WORDS.items() if any(words in loss for loss in named)
    }


def test_the_same_format_keeps_everything():
    for kind, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
        source = decode_image(rich_sources()[kind], "picture")
        assert losses_in(source, suffix) == []
        assert decode_image(encode_image(source, suffix), "copy").metadata == source.metadata


def test_chunks_of_a_png_are_copied_to_the_byte():
    gamma, time = (b"gAMA", struct.pack(">I", 45455)), (b"tIME", bytes((7, 232, 1, 2, 3, 4, 5)))
    source = decode_image(png(gamma, time), "picture")
    written = chunks(encode_image(source, ".png"))
    assert gamma in written and time in written
    assert [kind for kind, _ in written].index(b"gAMA") < [kind for kind, _ in written].index(
        b"IDAT"
    )


def test_unknown_parts_are_named():
    source = decode_image(png((b"caBX", b"claims")), "picture")
    assert losses_in(source, ".png") == ["the chunks caBX"]
    source = decode_image(jpeg(segment(0xEB, b"JP claims")), "picture")
    assert losses_in(source, ".jpg") == ["the segment APP11"]
    moving = decode_image(jpeg() + b"\0\0\0\x18ftypmp42 a motion photo's video", "picture")
    assert losses_in(moving, ".jpg") == ["the data behind the image"]


def test_the_second_image_of_an_mpo_is_named():
    stream = BytesIO()
    image().save(stream, "MPO", save_all=True, append_images=[image()])
    assert losses_in(decode_image(stream.getvalue(), "picture"), ".jpg") == [
        "the second image in the file"
    ]


def test_xmp_too_long_for_a_segment_is_named():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 70000)
    source = decode_image(saved("PNG", pnginfo=text), "picture")
    assert losses_in(source, ".jpg") == ["XMP"] and losses_in(source, ".webp") == []
    assert decode_image(encode_image(source, ".jpg"), "copy").metadata.xmp is None


def test_compressed_xmp_of_a_png_is_not_misread():
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    source = decode_image(saved("PNG", pnginfo=text), "picture")
    assert source.metadata.xmp == XMP
    assert decode_image(encode_image(source, ".webp"), "copy").metadata.xmp == XMP


def test_exif_that_is_dropped_is_named():
    source = decode_image(jpeg(segment(0xE1, b"Exif\0\0garbage")), "picture")
    assert losses_in(source, ".jpg") == ["EXIF that cannot be parsed"]


def test_alpha_under_the_name_of_a_jpeg_is_named():
    stream = BytesIO()
    image().convert("RGBA").save(stream, "PNG")
    source = decode_image(stream.getvalue(), "picture.jpg")
    assert losses_in(source, ".jpg") == ["transparency"] and losses_in(source, ".png") == []


@pytest.mark.parametrize(
    "data", [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n"]
)
def test_damaged_files_raise_nothing_else(data):
    with pytest.raises(MediaError):
        decode_image(data, "picture")


def test_damaged_metadata_raises_nothing_else():
    rng = np.random.default_rng(5)
    for whole in rich_sources().values():
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, min(len(data), 700), 4):
                data[at] = rng.integers(0, 256)
            try:
                source = decode_image(bytes(data), "picture")
            except MediaError:
                continue
            for suffix in (".jpg", ".png", ".tif"):
                decode_image(encode_image(source, suffix), "copy")


STILLS = {"GIF": (".gif", {}), "AVIF": (".avif", {"quality": 90}), "JPEG2000": (".jp2", {})}


@pytest.mark.parametrize("kind", STILLS)
def test_stills_of_further_formats_are_read(kind, tmp_path):
    suffix, options = STILLS[kind]
    if suffix not in readable_extensions():
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / f"still{suffix}"
    path.write_bytes(saved(kind, **options))
    got = decode_image(path.read_bytes(), path)
    assert got.format == kind and got.bgr.shape == (16, 24, 3) and image_size(path) == (24, 16)
    if kind == "JPEG2000":
        assert np.array_equal(got.bgr[..., ::-1], np.asarray(image()))


def test_moving_and_deep_avif_are_refused():
    if not ("avif" in features.modules and features.check("avif")):
        pytest.skip("this Pillow has no AVIF")
    with pytest.raises(MediaError, match="2 frames"):
        decode_image(saved("AVIF", save_all=True, append_images=[image()]), "picture")
    data = saved("AVIF")
    at = data.index(b"pixi") + 9
    with pytest.raises(MediaError, match="10 bits per channel"):
        decode_image(data[:at] + b"\x0a" + data[at + 1 :], "picture")
