"""What can be told of an upload from its bytes alone: whether it is base64, and which kind of file it is."""

import re
from binascii import a2b_base64
from collections.abc import Iterator

HEAD_BYTES = 4096
"""How much of a file `sniff_format` should see; a longer ID3 tag is taken for that of an MP3."""

_MARKS = (
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (8, b"WAVE", "wav"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b"caff", "caf"),
    (0, b"#!AMR", "amr"),
    (0, b"\0\0\1\xba", "mpeg"),
    *((4, atom, "mov") for atom in (b"moov", b"mdat", b"wide", b"free", b"skip")),
)
_MP4_BRANDS = {b"M4A ": "m4a", b"M4B ": "m4a", b"M4P ": "m4a", b"qt  ": "mov"}
_WEBM_TYPE = re.compile(rb"\x42\x82.{1,8}?webm", re.DOTALL)  # the EBML element DocType
_LAYERS = {1: "mp3", 2: "mp2", 3: "mp1"}

_PIECE_CHARS = 1 << 20
_WHITE_SPACE = " \t\r\n\f\v"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def sniff_format(head: bytes) -> str | None:
    """The short name of the kind of file that begins like this, such as `wav` or `m4a`.

    Args:
        head: the first `HEAD_BYTES` of the file, or all of a shorter one.

    Returns:
        aac, aiff, amr, caf, flac, m4a, mkv, mov, mp1, mp2, mp3, mp4, mpeg, ogg, wav or webm; None for
        anything else.
    """
    if head.startswith(b"ID3"):
        return _sniff_tagged(head)
    for offset, mark, name in _MARKS:
        if head.startswith(mark, offset):
            return name
    if head[4:8] == b"ftyp":
        return _MP4_BRANDS.get(head[8:12], "mp4")
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "webm" if _WEBM_TYPE.search(head) else "mkv"
    return _sniff_frame(head)


def _sniff_tagged(head: bytes) -> str:
    """What follows the ID3 tags at the front; most often that is MP3.

    Source of the layout: the ID3v2.4 structure, section 3.1.
    """
    while head.startswith(b"ID3") and len(head) >= 10:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        has_footer = head[5] & 0x10
        head = head[10 + size + (10 if has_footer else 0) :]
    return (None if head.startswith(b"ID3") else sniff_format(head)) or "mp3"


def _sniff_frame(head: bytes) -> str | None:
    """MPEG audio and AAC (ADTS) have no container: a file begins with the header of a frame.

    Source of the layouts: ISO/IEC 11172-3 section 2.4.2.3 and 13818-7 section 6.2.
    """
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    layer = head[1] >> 1 & 3
    if not layer:
        has_known_rate = (head[2] >> 2 & 15) < 13
        return "aac" if head[1] & 0xF0 == 0xF0 and has_known_rate else None
    is_reserved = head[1] >> 3 & 3 == 1 or head[2] >> 4 == 15 or head[2] >> 2 & 3 == 3
    return None if is_reserved else _LAYERS[layer]


def decode_base64(text: str) -> Iterator[bytes]:
    """The bytes that base64 stands for, in pieces: other threads run in between.

    Both alphabets are taken, the standard one and that of URLs; white space is ignored, and the padding may
    be missing.

    Raises:
        ValueError: the text is something else, which may come to light only after some pieces.
    """
    body = text.rstrip(_WHITE_SPACE + "=")
    rest = b""
    for start in range(0, len(body), _PIECE_CHARS):
        chars = body[start : start + _PIECE_CHARS].encode("ascii")
        chars = rest + chars.translate(_TO_STANDARD, _WHITE_SPACE.encode())
        if b"=" in chars:
            raise ValueError("padding inside")
        whole = len(chars) // 4 * 4
        yield a2b_base64(chars[:whole], strict_mode=True)
        rest = chars[whole:]
    missing = -len(rest) % 4
    if text.count("=", len(body)) not in (0, missing):
        raise ValueError("wrong padding")
    yield a2b_base64(rest + b"=" * missing, strict_mode=True)
