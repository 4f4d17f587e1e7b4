"""The size of an image from the first bytes of a JPEG file, without a library that looks at all of them."""

from __future__ import annotations

_TABLES, _SCAN = 0xDB, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_LEAST = {0xC4: 0, 0xDD: 0, 0xFE: 0, 0xE0: 16, 0xEE: 14}  # Huffman, restart, comment; what PIL reads of JFIF and Adobe
_NEVER = 2**16


def usual_size(head: bytes) -> tuple[int, int, int] | None:
    """Height and width, pixels, and layers, 1 or 3, where the header needs no second look; none: ask PIL.

    It is: 8 bits, one or three layers, nothing turned (no EXIF, no XMP), one image, sound segments up to the first
    scan. (Rec. ITU-T T.81, B.2.)

    Args:
        head: at least the header.
    """
    size, place, most = None, 2, len(head) - 4
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    while place <= most and head[place] == 0xFF:
        marker, length = head[place + 1], head[place + 2] << 8 | head[place + 3]
        if marker == _SCAN:
            return size if place + 2 + length <= len(head) else None
        if marker in _FRAMES and size is None:
            size = _frame(head[place + 4 : place + 2 + length])
        elif length < _LEAST.get(marker, _NEVER) and not (
            marker == _TABLES and _are_tables(head[place + 4 : place + 2 + length], length - 2)
        ):
            return None
        place += 2 + length
        if size == (0, 0, 0) or length < 2:
            return None
    return None


def _frame(segment: bytes) -> tuple[int, int, int]:
    """Height, width and layers; zeros where it is no usual one."""
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    layers = segment[5:6]
    sound = segment[:1] == b"\x08" and layers in (b"\x01", b"\x03") and len(segment) == 6 + 3 * layers[0]
    return (height, width, layers[0]) if sound and height and width else (0, 0, 0)


def _are_tables(segment: bytes, length: int) -> bool:
    """Whether these are whole quantization tables of 8 bits."""
    return len(segment) == length and length % 65 == 0 and all(head < 16 for head in segment[::65])
