"""Metadata of an image file beside color profile and EXIF: XMP, resolution, comments, text.

Formats: JFIF 1.02 and ISO/IEC 10918-1 annex B (JPEG segments), PNG 1.2 section 4, RFC 9649 (WebP).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_IPTC = b"Photoshop 3.0\0"
_PNG_XMP = b"XML:com.adobe.xmp\0"
JPEG_SEGMENT = 65533
"""Most bytes in a segment of a JPEG."""
_MAX_XMP = 2**24
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_KEPT_CHUNKS = (*_TEXT, b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tIME")
# Pixels, and what is read elsewhere or describes the stored pixels of the source alone.
_READ_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"sBIT", b"bKGD"}
_READ_CHUNKS |= {b"hIST", b"acTL", b"fcTL", b"fdAT"}
_EXIF_TEXT = b"Raw profile type exif"  # ImageMagick's; read as EXIF
_TIFF_XMP, _TIFF_RESOLUTION, _TIFF_IPTC = 700, 282, {33723: "IPTC", 34377: "Photoshop's data"}


@dataclass(frozen=True)
class Metadata:
    """What a file says beside pixels, color profile and EXIF.

    Attributes:
        xmp: an XMP packet.
        dpi: pixels per inch, horizontal and vertical.
        comments: of a JPEG or GIF.
        iptc: the payload of Photoshop's segments in a JPEG.
        chunks: of a PNG, kind and body: text, resolution, colors, time.
        dropped: what no copy keeps, in words.
    """

    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    comments: tuple[bytes, ...] = ()
    iptc: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    dropped: tuple[str, ...] = ()


def read_metadata(image: ImageFile, data: bytes) -> Metadata:
    """The metadata of an image that Pillow has loaded.

    Args:
        image: the image.
        data: its file.
    """
    if image.format in ("JPEG", "MPO"):
        return _of_jpeg(image, data)
    if image.format == "PNG":
        return _of_png(image, data)
    xmp, dpi = image.info.get("xmp"), image.info.get("dpi")
    dropped: list[str] = []
    comments: tuple[bytes, ...] = ()
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        xmp, dpi = tags.get(_TIFF_XMP), dpi if _TIFF_RESOLUTION in tags else None
        dropped = [words for tag, words in _TIFF_IPTC.items() if tag in tags]
    elif image.format == "GIF":
        comment = image.info.get("comment")
        comments = (comment,) if isinstance(comment, bytes) else ()
    xmp = xmp.encode("utf-8") if isinstance(xmp, str) else xmp
    return Metadata(
        bytes(xmp) if isinstance(xmp, (bytes, tuple)) and xmp else None,
        _dpi(dpi),
        comments,
        dropped=tuple(dropped),
    )


def losses(metadata: Metadata, format_name: str) -> list[str]:
    """What a file of a format will not hold, in words.

    Args:
        metadata: of the source.
        format_name: Pillow's name.
    """
    lost = list(metadata.dropped)
    xmp = metadata.xmp
    if xmp and (format_name == "BMP" or (format_name == "JPEG" and _is_too_long(_XMP + xmp))):
        lost.append("XMP")
    if metadata.dpi and format_name == "WEBP":
        lost.append("the resolution in dpi")
    if metadata.comments and format_name not in ("JPEG", "PNG"):
        lost.append("the comment")
    if metadata.iptc and format_name != "JPEG":
        lost.append("IPTC")
    if format_name != "PNG":
        names = [_keyword(body) for kind, body in metadata.chunks if kind in _TEXT]
        names = [name for name in names if name != _PNG_XMP[:-1].decode()]
        lost += [f"the text {', '.join(dict.fromkeys(names))}"] if names else []
    return lost


def with_jpeg_segments(data: bytes, metadata: Metadata) -> bytes:
    """A JPEG with XMP, IPTC and comments after its other segments."""
    bodies = [(0xE1, _XMP + metadata.xmp)] if metadata.xmp else []
    bodies += [(0xED, _IPTC + body) for body in metadata.iptc]
    bodies += [(0xFE, body) for body in metadata.comments]
    segments = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
        for marker, body in bodies
        if not _is_too_long(body)
    )
    end = 2
    for marker, begin, length in _segments(data):
        if not 0xE0 <= marker <= 0xEF:
            break
        end = begin + length
    return data[:end] + segments + data[end:]


def png_chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Chunks of a PNG: those of a PNG source unchanged, else made from the metadata."""
    if metadata.chunks:
        return list(metadata.chunks)
    chunks = []
    if metadata.dpi:
        per_meter = [round(value / 0.0254) for value in metadata.dpi]
        chunks.append((b"pHYs", struct.pack(">IIB", *per_meter, 1)))
    if metadata.xmp:
        chunks.append((b"iTXt", _PNG_XMP + bytes(4) + metadata.xmp))
    for comment in metadata.comments:
        text = comment.decode("utf-8", "replace").replace("\0", "")
        chunks.append((b"iTXt", b"Comment\0" + bytes(4) + text.encode()))
    return chunks


def _of_jpeg(image: ImageFile, data: bytes) -> Metadata:
    xmp, comments, iptc, dropped = None, [], [], []
    if image.format == "MPO":
        dropped.append("the second image in the file")
    for marker, begin, length in _segments(data):
        body = data[begin : begin + length]
        if marker == 0xE1 and body.startswith(_XMP):
            xmp = body[len(_XMP) :]
        elif marker == 0xED and body.startswith(_IPTC):
            iptc.append(body[len(_IPTC) :])
        elif marker == 0xFE:
            comments.append(body)
        elif 0xE1 <= marker <= 0xEF and not body.startswith(
            (b"Exif\0", b"ICC_PROFILE\0", b"MPF\0", b"Adobe")
        ):
            dropped.append(f"the segment APP{marker - 0xE0}")
    trailer = data.rstrip(b"\0")
    if not dropped and not trailer.endswith(b"\xff\xd9") and b"\xff\xd9" in trailer:
        dropped.append("the data behind the image")
    density = image.info.get("jfif_density")
    dpi = image.info.get("dpi") if density and image.info.get("jfif_unit") else None
    unique = tuple(dict.fromkeys(dropped))
    return Metadata(xmp, _dpi(dpi), tuple(comments), tuple(iptc), dropped=unique)


def _of_png(image: ImageFile, data: bytes) -> Metadata:
    chunks, dropped, xmp = [], [], None
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind in _KEPT_CHUNKS and not body.startswith(_EXIF_TEXT):
            chunks.append((kind, body))
            if kind == b"iTXt" and body.startswith(_PNG_XMP):
                xmp = _png_xmp(body[len(_PNG_XMP) :])
        elif kind not in _READ_CHUNKS and kind not in _KEPT_CHUNKS:
            dropped.append(kind.decode("latin-1"))
    words = (f"the chunks {', '.join(dict.fromkeys(dropped))}",) if dropped else ()
    return Metadata(xmp, _dpi(image.info.get("dpi")), chunks=tuple(chunks), dropped=words)


def _png_xmp(body: bytes) -> bytes | None:
    """The XMP of a chunk iTXt: after its flags, language and translated keyword."""
    text = body[2:].split(b"\0", 2)[-1]
    if not body.startswith(b"\1"):
        return text
    try:
        return zlib.decompressobj().decompress(text, _MAX_XMP)
    except zlib.error:
        return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and length of the body of each segment of a JPEG before its pixels."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position + 4, max(0, length - 2)
        position += 2 + max(2, length)


def _is_too_long(body: bytes) -> bool:
    return len(body) > JPEG_SEGMENT


def _keyword(body: bytes) -> str:
    return body.partition(b"\0")[0].decode("latin-1")


def _dpi(value: Any) -> tuple[float, float] | None:
    """A resolution as Pillow gives it; None where it states none."""
    try:
        horizontal, vertical = (float(each) for each in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e5 and 0 < vertical < 1e5 else None
