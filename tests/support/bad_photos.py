"""Damaged and unusual photographs, generated, each with what `prepare` should do with it."""

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import paint_photo

BOMB_SIDE = 60_000  # pixels: 10.8 GB of RGB out of a file of 80 bytes
ORIENTATION = 0x0112  # the EXIF tag

# What the reasons must contain, as case-insensitive regular expressions.
TRUNCATED = r"truncated"
EMPTY = r"empty|\b(no|0|zero) bytes"
FOREIGN = r"identify|holds|no photograph|not a photograph|format|content"
ANIMATED = r"animat|frames"
SMALL = r"side|small"
MANY_PIXELS = r"pixels"
GRAY = r"gray|colorful"
DUPLICATE = r"duplicate|same"
VANISHED = r"no such file|vanished|missing|gone"
LOOP = r"symbolic link|loop"
DENIED = r"permission"
# For members of archives.
UNSAFE_KIND = r"link|device|fifo|pipe|regular|no file|not a file|unsafe"


@dataclass(frozen=True)
class BadPhotoCase:
    """A file that was written, and what `prepare` makes of it with its default limits (32 px, near-gray left out).

    name: path inside the folder, with "/"; bytes that are not UTF-8 as `os.fsdecode` returns them.
    reason: why it is left out, a case-insensitive regular expression; None if it is kept.
    decodes: whether it can be decoded at all, so that only a limit leaves it out.
    """

    name: str
    reason: str | None = None
    decodes: bool = True

    @property
    def kept(self) -> bool:
        return self.reason is None


def write_bad_photos(folder: Path) -> list[BadPhotoCase]:
    """Every kind that a folder alone can hold, no two with the same pixels. Creates the folder.

    Not included: duplicates, of which either may be left out (`write_duplicates`), and files that need another user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [*write_unreadable(folder), *write_odd(folder), *write_beyond_limits(folder), *write_links(folder)]


def write_unreadable(folder: Path) -> list[BadPhotoCase]:
    """Files that hold no photograph, or only a part of one."""
    (folder / "truncated.jpg").write_bytes(encoded(paint_photo(100, 320, 240), "JPEG", share=0.6))
    (folder / "truncated.png").write_bytes(encoded(paint_photo(101, 320, 240), "PNG", share=0.6))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no photograph\n" * 100)
    (folder / "nested").mkdir(exist_ok=True)
    (folder / "nested" / "zeros.jpg").write_bytes(bytes(5000))
    return [
        BadPhotoCase("truncated.jpg", TRUNCATED, decodes=False),
        BadPhotoCase("truncated.png", TRUNCATED, decodes=False),
        BadPhotoCase("empty.jpg", EMPTY, decodes=False),
        BadPhotoCase("text.png", FOREIGN, decodes=False),
        BadPhotoCase("nested/zeros.jpg", FOREIGN, decodes=False),
    ]


def write_odd(folder: Path) -> list[BadPhotoCase]:
    """Complete photographs in unusual formats and under unusual names. All are kept."""
    paint_photo(110, 64, 48).save(folder / "png.jpg", "PNG")
    paint_photo(111, 64, 48).save(folder / "jpeg.dat", "JPEG")
    paint_photo(112, 64, 48).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "sixteen-bit-rgb.png").write_bytes(sixteen_bit_png(np.asarray(paint_photo(113, 64, 48))))
    palette = paint_photo(114, 64, 48).quantize(64)
    palette.save(folder / "palette.png", transparency=7)
    paint_photo(115, 64, 48).quantize(64).save(folder / "palette.bmp")
    with_alpha = paint_photo(116, 64, 48)
    with_alpha.putalpha(Image.linear_gradient("L").resize((64, 48)))
    with_alpha.save(folder / "alpha.png")
    save_turned(paint_photo(117, 64, 48), folder / "turned.jpg", 6)
    paint_photo(118, 64, 48).save(folder / "progressive.jpg", progressive=True)
    paint_photo(119, 64, 48).save(
        folder / "multi-picture.jpg", "MPO", save_all=True, append_images=[paint_photo(120, 32, 24)]
    )
    paint_photo(121, 64, 48).save(folder / "name with spaces.jpg")
    paint_photo(122, 64, 48).save(folder / "name\nin two lines.jpg")
    no_utf8 = os.fsdecode(b"no utf-8 \xff\xfe.jpg")
    paint_photo(123, 64, 48).save(folder / no_utf8)
    paint_photo(124, 64, 48).save(folder / "UPPER.JPG")
    paint_photo(125, 64, 48).save(folder / "plain.webp", lossless=True)
    paint_photo(126, 64, 48).save(folder / "plain.tif")
    return [
        BadPhotoCase(name)
        for name in (
            "png.jpg",
            "jpeg.dat",
            "cmyk.jpg",
            "sixteen-bit-rgb.png",
            "palette.png",
            "palette.bmp",
            "alpha.png",
            "turned.jpg",
            "progressive.jpg",
            "multi-picture.jpg",
            "name with spaces.jpg",
            "name\nin two lines.jpg",
            no_utf8,
            "UPPER.JPG",
            "plain.webp",
            "plain.tif",
        )
    ]


def write_beyond_limits(folder: Path) -> list[BadPhotoCase]:
    """Complete photographs that are animated, too small, too large or gray."""
    frames = [paint_photo(number, 64, 48) for number in (130, 131, 132)]
    frames[0].save(folder / "gif.jpg", "GIF", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), (200, 40, 60)).save(folder / "one-pixel.png")
    paint_photo(133, 65500, 1).save(folder / "wide.jpg")
    write_bomb(folder / "bomb.png")
    gray = paint_photo(134, 64, 48).convert("L")
    gray.save(folder / "gray.jpg")
    gray_u16 = np.asarray(paint_photo(135, 64, 48).convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray_u16).save(folder / "sixteen-bit-gray.png")
    tinted = np.asarray(paint_photo(136, 64, 48).convert("L"))[..., None] // 2 + np.array([2, 1, 0], np.uint8)
    Image.fromarray(tinted).save(folder / "near-gray.png")
    return [
        BadPhotoCase("gif.jpg", f"{ANIMATED}|GIF"),
        BadPhotoCase("animated.webp", ANIMATED),
        BadPhotoCase("animated.png", ANIMATED),
        BadPhotoCase("one-pixel.png", SMALL),
        BadPhotoCase("wide.jpg", SMALL),
        BadPhotoCase("bomb.png", MANY_PIXELS, decodes=False),
        BadPhotoCase("gray.jpg", GRAY),
        BadPhotoCase("sixteen-bit-gray.png", GRAY),
        BadPhotoCase("near-gray.png", GRAY),
    ]


def write_links(folder: Path) -> list[BadPhotoCase]:
    """Links in a circle: folders, which hold nothing new, and a file; and a link to a file that has vanished."""
    (folder / "nested").mkdir(exist_ok=True)
    (folder / "nested" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "myself").symlink_to("myself")
    (folder / "ring.jpg").symlink_to("ring.jpg")
    (folder / "vanished.jpg").symlink_to("was-never-here.jpg")
    return [BadPhotoCase("ring.jpg", LOOP, decodes=False), BadPhotoCase("vanished.jpg", VANISHED, decodes=False)]


def write_duplicates(folder: Path) -> list[tuple[str, str]]:
    """Pairs of names with the same pixels in them, one copied, one in another format: one of each pair is kept."""
    paint_photo(140, 64, 48).save(folder / "first.png")
    (folder / "copied.png").write_bytes((folder / "first.png").read_bytes())
    paint_photo(141, 64, 48).save(folder / "lossless.png")
    paint_photo(141, 64, 48).save(folder / "lossless.bmp")
    return [("first.png", "copied.png"), ("lossless.png", "lossless.bmp")]


def write_bomb(path: Path, side: int = BOMB_SIDE) -> None:
    """A PNG of 80 bytes whose header promises side x side pixels."""
    path.write_bytes(_png(side, side, 8, 2, bytes(100)))


def save_turned(photo: Image.Image, path: Path, orientation: int) -> None:
    """Save with an EXIF orientation (1 to 8), which says how to turn the stored pixels."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo.save(path, exif=exif)


def sixteen_bit_png(rgb_u8_HWC: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, each value v as v * 257, which Pillow reads as v but cannot write."""
    height, width, _ = rgb_u8_HWC.shape
    rows = (rgb_u8_HWC.astype(">u2") * 257).astype(">u2").reshape(height, -1)
    return _png(width, height, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def encoded(photo: Image.Image, form: str, share: float = 1.0) -> bytes:
    """A photograph's file, or only its first part."""
    file = BytesIO()
    photo.save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()[: int(len(file.getvalue()) * share)]


def _png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """The chunks of a PNG, whether or not the rows fit the header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
