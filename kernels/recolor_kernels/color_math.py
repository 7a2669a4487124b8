"""Color arithmetic of the kernels, on float32 values in registers; levels are int32 in 0..255."""

import triton
import triton.language as tl

from recolor_kernels import constants

# Triton reads constants only from the module of a kernel, as tl.constexpr: so a change compiles the kernel again.
SRGB_SLOPE = tl.constexpr(constants.SRGB_SLOPE)
SRGB_OFFSET = tl.constexpr(constants.SRGB_OFFSET)
SRGB_GAMMA = tl.constexpr(constants.SRGB_GAMMA)
SRGB_LINEAR_KNEE = tl.constexpr(constants.SRGB_LINEAR_KNEE)
SRGB_ENCODED_KNEE = tl.constexpr(constants.SRGB_ENCODED_KNEE)
LUMA = tl.constexpr(constants.LUMA_REC601)
XYZ_FROM_RGB = tl.constexpr(constants.XYZ_FROM_RGB)
RGB_FROM_XYZ = tl.constexpr(constants.RGB_FROM_XYZ)
WHITE = tl.constexpr(constants.WHITE_D65)
LAB_KNEE = tl.constexpr(constants.LAB_KNEE)
LAB_F_KNEE = tl.constexpr(constants.LAB_F_KNEE)
LAB_SLOPE = tl.constexpr(constants.LAB_SLOPE)
LAB_OFFSET = tl.constexpr(constants.LAB_OFFSET)
LIGHTNESS_FACTOR = tl.constexpr(constants.LIGHTNESS_FACTOR)
LIGHTNESS_OFFSET = tl.constexpr(constants.LIGHTNESS_OFFSET)
A_FACTOR = tl.constexpr(constants.A_FACTOR)
B_FACTOR = tl.constexpr(constants.B_FACTOR)
L_SCALE = tl.constexpr(constants.L_SCALE)
AB_SCALE = tl.constexpr(constants.AB_SCALE)
RGB_SCALE = tl.constexpr(constants.RGB_SCALE)
DECODE = tl.constexpr(constants.DECODE)
DECODE_16_BITS = tl.constexpr(constants.DECODE_16_BITS)
CUBE_ROOT = tl.constexpr(constants.CUBE_ROOT)
CUBE_ROOT_16_BITS = tl.constexpr(constants.CUBE_ROOT_16_BITS)
ENCODE = tl.constexpr(constants.ENCODE)
ENCODE_8_BITS = tl.constexpr(constants.ENCODE_8_BITS)


@triton.jit
def polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr, SCALE: tl.constexpr = 1, addend=0.0):
    """SCALE times a polynomial in x, highest power first, plus an addend (Horner's rule)."""
    value = COEFFICIENTS[0] * SCALE
    for power in tl.static_range(1, DEGREE):
        value = value * x + COEFFICIENTS[power] * SCALE
    return value * x + (addend + COEFFICIENTS[DEGREE] * SCALE)


@triton.jit
def srgb_decode(level, EXACT: tl.constexpr):
    """8-bit sRGB levels to linear values in [0, 1] (IEC 61966-2-1), within 1e-4 Lab units, or 6e-4 if not EXACT.

    A line, plus a polynomial beyond the knee, which is fitted to the 256 possible inputs.
    """
    value = (level | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # 2^23 + level: cheaper than a conversion
    curved = tl.maximum(value, SRGB_ENCODED_KNEE * 255)
    line = value * (1 / 255 / SRGB_SLOPE)
    if EXACT:
        return polynomial(curved, DECODE, 9, 1, line)
    else:
        return polynomial(curved, DECODE_16_BITS, 7, 1, line)


@triton.jit
def to_level(linear):
    """Linear values to sRGB levels, within 0.01 before rounding, clamped to the gamut: low 24 bits of an int32."""
    linear = tl.minimum(tl.maximum(linear, 0.0), 1.0)
    curved = tl.maximum(linear, SRGB_LINEAR_KNEE)
    power = polynomial(tl.rsqrt(tl.rsqrt(curved)), ENCODE_8_BITS, 4, 255)
    # rounds to 2^23 + level
    return (power + (linear - curved) * (SRGB_SLOPE * 255) + 8388608.0).to(tl.int32, bitcast=True)


@triton.jit
def srgb_encode(linear):
    """Linear values to sRGB values, in [0, 1] if in gamut, not clamped; and the derivative."""
    curved = tl.maximum(linear, SRGB_LINEAR_KNEE)
    inverse_root = tl.rsqrt(curved)
    power = polynomial(tl.rsqrt(inverse_root), ENCODE, 8)
    slope = (power + SRGB_OFFSET) * inverse_root * inverse_root * (1 / SRGB_GAMMA)
    is_curved = linear > SRGB_LINEAR_KNEE
    return tl.where(is_curved, power, linear * SRGB_SLOPE), tl.where(is_curved, slope, SRGB_SLOPE)


@triton.jit
def lab_f(t, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """SCALE times CIE's f of t up to 1: the cube root, and below its knee the tangent line."""
    curved = tl.maximum(t, LAB_KNEE)
    fourth_root = tl.rsqrt(tl.rsqrt(curved))
    line = (t - curved) * (LAB_SLOPE * SCALE)
    if EXACT:
        return polynomial(fourth_root, CUBE_ROOT, 7, SCALE) + line
    else:
        return polynomial(fourth_root, CUBE_ROOT_16_BITS, 5, SCALE) + line


@triton.jit
def lab_f_inverse(f):
    """t of CIE's f(t)."""
    return tl.where(f > LAB_F_KNEE, f * f * f, (f - LAB_OFFSET) * (1 / LAB_SLOPE))


@triton.jit
def lab_f_inverse_slope(f):
    """The derivative of lab_f_inverse."""
    return tl.where(f > LAB_F_KNEE, 3 * f * f, 1 / LAB_SLOPE)


@triton.jit
def rgb_to_f(
    red, green, blue, X_SCALE: tl.constexpr, Y_SCALE: tl.constexpr, Z_SCALE: tl.constexpr, EXACT: tl.constexpr
):
    """Levels to f(X/Xn), f(Y/Yn), f(Z/Zn), each times its scale."""
    r, g, b = srgb_decode(red, EXACT), srgb_decode(green, EXACT), srgb_decode(blue, EXACT)
    fx = lab_f(_relative(0, r, g, b), X_SCALE, EXACT)
    fy = lab_f(_relative(1, r, g, b), Y_SCALE, EXACT)
    fz = lab_f(_relative(2, r, g, b), Z_SCALE, EXACT)
    return fx, fy, fz


@triton.jit
def _relative(ROW: tl.constexpr, r, g, b):
    """X, Y or Z of linear RGB, relative to the white."""
    return (
        (XYZ_FROM_RGB[ROW][0] / WHITE[ROW]) * r
        + (XYZ_FROM_RGB[ROW][1] / WHITE[ROW]) * g
        + (XYZ_FROM_RGB[ROW][2] / WHITE[ROW]) * b
    )


@triton.jit
def rgb_to_lab(red, green, blue, EXACT: tl.constexpr):
    """Levels to L, a, b in the networks' ranges."""
    fx, fy, fz = rgb_to_f(red, green, blue, A_FACTOR / AB_SCALE, 1, B_FACTOR / AB_SCALE, EXACT)
    lightness = fy * (LIGHTNESS_FACTOR / L_SCALE) - (LIGHTNESS_OFFSET / L_SCALE + 1)
    return lightness, fx - fy * (A_FACTOR / AB_SCALE), fy * (B_FACTOR / AB_SCALE) - fz


@triton.jit
def rgb_to_lab_units(red, green, blue):
    """Levels to L*, a*, b*."""
    fx, fy, fz = rgb_to_f(red, green, blue, 1, 1, 1, True)
    return fy * LIGHTNESS_FACTOR - LIGHTNESS_OFFSET, (fx - fy) * A_FACTOR, (fy - fz) * B_FACTOR


@triton.jit
def lab_to_f(lightness, a, b):
    """L, a, b in the networks' ranges to f of X, Y, Z; f_to_linear takes an f of Z below 0 for 0."""
    fy = (lightness + 1) * (L_SCALE / LIGHTNESS_FACTOR) + LIGHTNESS_OFFSET / LIGHTNESS_FACTOR
    return fy + a * (AB_SCALE / A_FACTOR), fy, fy - b * (AB_SCALE / B_FACTOR)


@triton.jit
def lab_to_f_backward(d_fx, d_fy, d_fz):
    """Gradients of L, a, b from those of lab_to_f's results."""
    d_lightness = (d_fx + d_fy + d_fz) * (L_SCALE / LIGHTNESS_FACTOR)
    return d_lightness, d_fx * (AB_SCALE / A_FACTOR), d_fz * (-AB_SCALE / B_FACTOR)


@triton.jit
def f_to_linear(fx, fy, fz):
    """f of X, Y, Z to linear RGB."""
    x, y, z = lab_f_inverse(fx), lab_f_inverse(fy), lab_f_inverse(tl.where(fz < 0, 0.0, fz))
    return _linear(0, x, y, z), _linear(1, x, y, z), _linear(2, x, y, z)


@triton.jit
def _linear(ROW: tl.constexpr, x, y, z):
    """Linear R, G or B of X, Y, Z relative to the white."""
    return (
        (RGB_FROM_XYZ[ROW][0] * WHITE[0]) * x
        + (RGB_FROM_XYZ[ROW][1] * WHITE[1]) * y
        + (RGB_FROM_XYZ[ROW][2] * WHITE[2]) * z
    )


@triton.jit
def f_to_linear_backward(fx, fy, fz, d_red, d_green, d_blue):
    """Gradients of f of X, Y, Z from those of f_to_linear's results."""
    d_fx = _d_xyz(0, d_red, d_green, d_blue) * lab_f_inverse_slope(fx)
    d_fy = _d_xyz(1, d_red, d_green, d_blue) * lab_f_inverse_slope(fy)
    d_fz = _d_xyz(2, d_red, d_green, d_blue) * lab_f_inverse_slope(fz)
    return d_fx, d_fy, tl.where(fz < 0, 0.0, d_fz)


@triton.jit
def _d_xyz(COLUMN: tl.constexpr, d_red, d_green, d_blue):
    """The gradient of X, Y or Z relative to the white: the transpose of _linear's matrix."""
    d_absolute = RGB_FROM_XYZ[0][COLUMN] * d_red + RGB_FROM_XYZ[1][COLUMN] * d_green + RGB_FROM_XYZ[2][COLUMN] * d_blue
    return d_absolute * WHITE[COLUMN]


@triton.jit
def level_to_value(level):
    """Levels to values in [-1, 1]."""
    return level.to(tl.float32) * (1 / RGB_SCALE) - 1


@triton.jit
def luma(r, g, b):
    """Rec. 601 luma of encoded values, in their range."""
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
