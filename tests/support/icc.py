"""ICC profiles (ICC.1:2001, version 2) by a few lines."""

import struct
from collections.abc import Mapping

D50 = (0.9642, 1.0, 0.8249)
# Columns red, green, blue of RGB to XYZ, adapted to D50 (Adobe RGB (1998) Color Image Encoding, appendix).
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
ADOBE_GAMMA = 563 / 256


def rgb_profile(name: str = "A wide one") -> bytes:
    """Adobe RGB (1998)."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, ADOBE_RGB), strict=True))
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(ADOBE_GAMMA))
    return _profile(b"RGB ", name, {**columns, **curves})


def gray_profile(gamma: float) -> bytes:
    """Gray whose light is its level to the power of gamma."""
    return _profile(b"GRAY", "A gray one", {b"kTRC": _gamma(gamma)})


def _profile(space: bytes, name: str, tags: Mapping[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    every = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    every = {key: value + bytes(-len(value) % 4) for key, value in every.items()}
    offset, table, body = 128 + 4 + 12 * len(every), b"", b""
    for key, value in every.items():
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(every)) + table + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))
