"""Pixels as the file's color profile says, whoever decodes them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from skimage.color import rgb2lab

from hpc_recolor.config import DataConfig
from hpc_recolor.data.color_profiles import srgb_profile
from hpc_recolor.data.photo import _kept_metadata, decode, decode_whole, for_dali
from hpc_recolor.data.pipeline import undecodable
from tests.conftest import paint_photo
from tests.support import tolerances
from tests.support.icc import ADOBE_GAMMA, ADOBE_RGB, gray_profile, rgb_profile

SRGB_FROM_XYZ_D50 = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


def saved(photo: Image.Image, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    photo.save(content, format, **options)
    return content.getvalue()


def encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB levels of light in [0, 1] (IEC 61966-2-1)."""
    light = linear.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_wide_colors_become_those_of_srgb(format: str) -> None:
    photo = paint_photo(3, 40, 30)
    light = (np.asarray(photo) / 255) ** ADOBE_GAMMA
    expected = encoded(light @ np.array(ADOBE_RGB) @ SRGB_FROM_XYZ_D50.T)
    found = np.asarray(decode(saved(photo, format, icc_profile=rgb_profile()))).astype(float)
    inside = (expected > 0) & (expected < 255)
    assert np.abs(found - expected)[inside].max() <= tolerances.PROFILE_LEVELS
    assert np.abs(np.asarray(photo) - expected)[inside].max() > 10


@pytest.mark.parametrize("bits", [8, 16])
def test_linear_gray_becomes_as_light_as_it_is_meant(bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, 400).round().reshape(20, 20)
    gray = Image.fromarray(levels.astype(np.uint8 if bits == 8 else np.uint16))
    found = np.asarray(decode(saved(gray, "TIFF", icc_profile=gray_profile(1.0))))
    expected = encoded(levels / (2**bits - 1))[..., None].repeat(3, axis=2)
    assert np.abs(rgb2lab(found) - rgb2lab(expected / 255))[1:, :, 0].max() <= tolerances.PROFILE_LIGHTNESS


@pytest.mark.parametrize("profile", [srgb_profile(), rgb_profile("sRGB IEC61966-2.1"), b"nothing", gray_profile(1.0)])
def test_srgb_and_profiles_that_cannot_be_right_change_nothing(profile: bytes) -> None:
    photo = paint_photo(3, 40, 30)
    np.testing.assert_array_equal(np.asarray(decode(saved(photo, "PNG", icc_profile=profile))), np.asarray(photo))


def test_a_tiff_whose_zero_is_white_is_no_negative() -> None:
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    content = saved(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(decode(content))[..., 0], (65535 - levels) >> 8)


def xmp_orientation(value: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{value}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def exif_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif.tobytes()


def adobe_in_exif(space: int = 0xFFFF, index: str = "R03") -> bytes:
    """EXIF of a camera that is set to Adobe RGB, as DCF's option file has it."""
    exif = Image.Exif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.ColorSpace] = space
    details[ExifTags.IFD.Interop] = {1: index, 2: b"0100"}
    return exif.tobytes()


def with_gamma(content: bytes, gamma: float) -> bytes:
    """A PNG with a gAMA chunk after its header."""
    chunk = b"gAMA" + struct.pack(">I", round(gamma * 100_000))
    return content[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def test_a_jpeg_that_only_its_exif_calls_adobe_rgb_is_read_as_that_and_copied_as_srgb() -> None:
    options = {"quality": 95, "subsampling": 0}
    named = saved(paint_photo(3, 40, 30), "JPEG", exif=adobe_in_exif(), **options)
    expected = decode(saved(paint_photo(3, 40, 30), "JPEG", icc_profile=rgb_profile(), **options))
    np.testing.assert_array_equal(np.asarray(decode(named)), np.asarray(expected))
    copy = Image.open(io.BytesIO(saved(expected, "JPEG", **decode_whole(named).metadata)))
    assert copy.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] == 1
    assert not copy.getexif().get_ifd(ExifTags.IFD.Interop)


def test_exif_of_srgb_changes_nothing() -> None:
    photo = paint_photo(3, 40, 30)
    content = saved(photo, "JPEG", exif=adobe_in_exif(1, "R98"))
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8])
def test_a_png_with_a_gamma_of_its_own_becomes_as_light_as_it_is_meant(mode: str, gamma: float) -> None:
    levels = np.linspace(0, 1, 400).reshape(20, 20)
    most = 65535 if mode == "I;16" else 255
    gray = Image.fromarray((levels * most).round().astype(np.uint16 if mode == "I;16" else np.uint8))
    content = with_gamma(saved(gray if mode != "RGB" else gray.convert("RGB"), "PNG"), gamma)
    expected = encoded(((levels * most).round() / most) ** (1 / gamma))[..., None].repeat(3, axis=2)
    found = rgb2lab(np.asarray(decode(content)))
    assert np.abs(found - rgb2lab(expected / 255))[1:, :, 0].max() <= tolerances.PROFILE_LIGHTNESS


def test_the_gamma_of_srgb_changes_nothing() -> None:
    photo = paint_photo(3, 40, 30)
    np.testing.assert_array_equal(np.asarray(decode(with_gamma(saved(photo, "PNG"), 0.45455))), np.asarray(photo))


FILES = {
    "wide jpeg": saved(paint_photo(1, 40, 30), "JPEG", icc_profile=rgb_profile()),
    "wide png": saved(paint_photo(1, 40, 30), "PNG", icc_profile=rgb_profile()),
    "adobe rgb in exif": saved(paint_photo(1, 40, 30), "JPEG", exif=adobe_in_exif()),
    "png with a gamma": with_gamma(saved(paint_photo(1, 40, 30), "PNG"), 1.0),
    "avif": saved(paint_photo(1, 40, 30), "AVIF", quality=100),
    "lossless webp with exif": saved(paint_photo(1, 40, 30), "WEBP", lossless=True, exif=exif_orientation(6)),
    "turned by xmp": saved(paint_photo(1, 40, 30), "JPEG", xmp=xmp_orientation(6)),
    "turned by exif": saved(paint_photo(1, 40, 30), "JPEG", exif=exif_orientation(6)),
    "plain": saved(paint_photo(1, 40, 30), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_dali_reads_the_pixels_that_pillow_does(name: str) -> None:
    dali = pytest.importorskip("nvidia.dali")
    content = for_dali(FILES[name])
    assert not undecodable([np.frombuffer(FILES[name], np.uint8)])

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        file = dali.fn.external_source(
            source=lambda: [np.frombuffer(content, np.uint8)], dtype=dali.types.UINT8, ndim=1
        )
        return dali.fn.decoders.image(file, device="cpu", output_type=dali.types.RGB)

    (found,) = graph().run()
    expected = np.asarray(decode(FILES[name])).astype(int)
    assert np.abs(found.as_array()[0] - expected).max() <= tolerances.DECODERS_LEVELS
    assert DataConfig().loader == "auto"  # and so DALI is what most runs use


def test_a_copy_keeps_transparency_upright_resolution_and_exif_but_no_orientation() -> None:
    photo = paint_photo(1, 40, 30).convert("RGBA")
    photo.putalpha(Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "somebody"
    whole = decode_whole(saved(photo, "PNG", exif=exif.tobytes(), dpi=(300, 300)))
    assert whole.rgb.size == (30, 40) and whole.alpha is not None
    np.testing.assert_array_equal(
        np.asarray(whole.alpha), np.asarray(photo.getchannel("A").transpose(Image.Transpose.ROTATE_270))
    )
    again = Image.Exif()
    again.load(whole.metadata["exif"])
    assert dict(again) == {ExifTags.Base.Artist: "somebody"}
    assert whole.metadata["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_copy_drops_the_small_picture_in_exif_which_shows_the_photograph_before() -> None:
    small = saved(Image.new("RGB", (16, 16), "red"), "JPEG")
    first = struct.pack("<HHHII", 1, 315, 2, 2, 0x41)  # IFD 0: an artist, "A"
    second = struct.pack("<HHHIIHHII", 2, 513, 4, 1, 56, 514, 4, 1, len(small))  # IFD 1: where the small picture lies
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", 26) + second + bytes(4)
    photo = saved(paint_photo(1, 40, 30), "JPEG", exif=exif + small)
    assert small in photo and Image.open(io.BytesIO(photo)).getexif().get_ifd(ExifTags.IFD.IFD1)
    kept = decode_whole(photo).metadata["exif"]
    assert b"A" in kept and small not in kept


@pytest.mark.parametrize("density", [0.0, 1e9, float("inf"), float("nan")])
def test_a_resolution_that_cannot_be_is_dropped(density: float) -> None:
    photo = paint_photo(1, 40, 30)
    exif = Image.Exif()
    content = saved(photo, "TIFF", exif=exif, dpi=(300, 300))
    with Image.open(io.BytesIO(content)) as opened:
        opened.info["dpi"] = (density, 300)
        assert "dpi" not in _kept_metadata(opened)
    assert decode_whole(content).metadata["dpi"] == pytest.approx((300, 300))


@pytest.mark.parametrize("tag", [b"rTRC", b"gXYZ"])
def test_a_profile_that_lacks_a_table_is_ignored(tag: bytes) -> None:
    photo, profile = paint_photo(5, 40, 30), rgb_profile().replace(tag, b"xxxx", 1)
    content = saved(photo, "PNG", icc_profile=profile)
    for read in (content, for_dali(content)):
        np.testing.assert_array_equal(np.asarray(decode(read)), np.asarray(photo))
