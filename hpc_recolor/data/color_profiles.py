"""Pixels of any mode and color profile to 8-bit sRGB (IEC 61966-2-1), with Pillow's LittleCMS."""

import io

import numpy as np
from PIL import Image, ImageCms

# Modes that LittleCMS takes, by the color space of a profile (ICC.1:2022, table 19).
MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
LEVELS_16 = 65535
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 8


def to_srgb(photo: Image.Image) -> Image.Image:
    """A Pillow image as sRGB of 8 bits, not turned; itself, if it is that already.

    A profile that cannot be read, or is of another color space than the pixels, is ignored, as browsers do.
    """
    profile = _foreign_profile(photo)
    if photo.mode.startswith("I"):
        return _gray_16_to_srgb(photo, profile)
    if photo.mode in ("P", "PA"):  # a palette with transparency would otherwise cause a warning
        photo = photo.convert("RGBA")
    if profile:
        return _converted(photo, profile)
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def has_foreign_profile(photo: Image.Image) -> bool:
    """Whether an image has a readable color profile of another space than sRGB. Needs the header alone."""
    return _foreign_profile(photo) is not None


def srgb_profile() -> bytes:
    """An ICC profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _foreign_profile(photo: Image.Image) -> ImageCms.ImageCmsProfile | None:
    content = photo.info.get("icc_profile")
    if not content:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        is_srgb = space == "RGB" and "sRGB" in ImageCms.getProfileDescription(profile)
    except (OSError, ImageCms.PyCMSError):
        return None
    is_gray = photo.mode in ("1", "L", "LA", "La") or photo.mode.startswith("I")
    fits = space in MODES and (space == "GRAY") <= is_gray and (space == "CMYK") == (photo.mode == "CMYK")
    return None if is_srgb or not fits else profile


def _converted(photo: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Relative colorimetric with black point compensation, as photographs are usually shown. Without the profile if its
    tables are damaged, which is found only now."""
    mode = MODES[profile.profile.xcolor_space.strip()]
    try:
        converted = ImageCms.profileToProfile(
            photo if photo.mode == mode else photo.convert(mode),
            profile,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        return photo.convert("RGB")
    assert converted is not None  # only in place it returns none
    return converted


def _gray_16_to_srgb(photo: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    """Gray of 16 bits, which `convert` would clip at 255, and of which Pillow does not invert WhiteIsZero."""
    levels = np.asarray(photo).clip(0, LEVELS_16)
    if getattr(photo, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = LEVELS_16 - levels
    if profile and profile.profile.xcolor_space.strip() == "GRAY":  # between the 256 levels that LittleCMS takes
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        curve = np.asarray(_converted(ramp, profile))[0, :, 0]
        gray = np.interp(levels / 257, np.arange(256), curve).round().astype(np.uint8)
    else:
        gray = (levels >> 8).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
