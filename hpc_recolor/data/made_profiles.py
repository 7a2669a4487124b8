"""Color profiles for files that name their colors without one: Adobe RGB in EXIF, a gamma in PNG (ICC.1:2001-04)."""

import struct
from collections.abc import Mapping
from contextlib import suppress

from PIL import ExifTags, Image

# Columns red, green, blue of RGB to XYZ, adapted to D50 (Adobe RGB (1998), appendix; IEC 61966-2-1, annex).
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_GAMMA = 563 / 256
D50 = (0.9642, 1.0, 0.8249)
# EXIF's index of the option file, whose colors are Adobe RGB (DCF 2.0, 3.6).
INTEROP_INDEX, OPTION_FILE = 1, "R03"
# PNG's gamma of sRGB, and how near to it others are taken for sRGB (PNG 3, 11.3.2.2).
SRGB_GAMMA, NEAR = 1 / 2.2, 0.02

NAME = "as the file says"


def add_named_profile(photo: Image.Image) -> None:
    """Give an image that has no color profile the one that its file names otherwise. The header is enough."""
    if "icc_profile" in photo.info:
        return
    if photo.format in ("JPEG", "MPO") and _is_adobe_rgb(photo):
        photo.info["icc_profile"] = rgb_profile(ADOBE_RGB, ADOBE_GAMMA)
    gamma = photo.info.get("gamma") if photo.format == "PNG" and "srgb" not in photo.info else None
    if gamma and abs(gamma - SRGB_GAMMA) > NEAR:
        is_gray = photo.mode in ("1", "L", "LA") or photo.mode.startswith("I")
        photo.info["icc_profile"] = gray_profile(1 / gamma) if is_gray else rgb_profile(SRGB, 1 / gamma)


def _is_adobe_rgb(photo: Image.Image) -> bool:
    with suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):  # damaged EXIF
        return bool(photo.getexif().get_ifd(ExifTags.IFD.Interop).get(INTEROP_INDEX) == OPTION_FILE)
    return False


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float, name: str = NAME) -> bytes:
    """An ICC profile of RGB. primaries: columns red, green, blue of RGB to XYZ, adapted to D50; gamma: of all three."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, primaries), strict=True))
    return _profile(b"RGB ", name, {**columns, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))})


def gray_profile(gamma: float) -> bytes:
    """An ICC profile of gray whose light is its level to the power of gamma."""
    return _profile(b"GRAY", NAME, {b"kTRC": _curve(gamma)})


def _profile(space: bytes, name: str, tags: Mapping[bytes, bytes]) -> bytes:
    """Header, table of tags, and their values, each a multiple of four bytes long."""
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    every = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    offset, table, body = 128 + 4 + 12 * len(every), b"", b""
    for key, value in every.items():
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(every)) + table + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    """Light is a level to the power of gamma, written in 256ths, up to just below 256."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, min(0xFFFF, max(1, round(gamma * 256))))
