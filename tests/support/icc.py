"""ICC profiles that photographs of tests carry."""

from hpc_recolor.data import made_profiles

# Columns red, green, blue of RGB to XYZ, adapted to D50 (Adobe RGB (1998) Color Image Encoding, appendix).
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
ADOBE_GAMMA = 563 / 256


def rgb_profile(name: str = "A wide one") -> bytes:
    """Adobe RGB (1998)."""
    return made_profiles.rgb_profile(ADOBE_RGB, ADOBE_GAMMA, name)


def gray_profile(gamma: float) -> bytes:
    """Gray whose light is its level to the power of gamma."""
    return made_profiles.gray_profile(gamma)
