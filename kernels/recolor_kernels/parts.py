"""What the kernels share: where a program works, loads and stores of pixels, and the mathematics of color.

A program works on up to BLOCK pixels of one picture. Whatever depends on the program's number is computed in 64 bits,
once a program; what depends on the place within the block is computed in 32 bits, once a pixel.
uint8 NHWC moves by GROUP pixels in a row a thread: 8, or 4, as whole 32-bit words; or 1, byte by byte.
"""

import triton
import triton.language as tl

from recolor_kernels import constants

# ---- places ----


@triton.jit
def locate(block, pixels, blocks, BLOCK: tl.constexpr):
    """Of a block counted over all pictures: its picture, its first pixel in the picture, its number of pixels."""
    image = (block // blocks).to(tl.int64)
    first = (block % blocks).to(tl.int64) * BLOCK
    return image, first, tl.minimum(pixels - first, BLOCK).to(tl.int32)


@triton.jit
def span(block, size, BLOCK: tl.constexpr):
    """Of a block of `size` values in a row: its first value, its number of values."""
    first = tl.cast(block, tl.int64) * BLOCK
    return first, tl.minimum(size - first, BLOCK).to(tl.int32)


# ---- loads and stores ----


@triton.jit
def load(ptr, left, BLOCK: tl.constexpr):
    """BLOCK values from ptr on as float32, zero beyond the `left` that exist."""
    lane = tl.arange(0, BLOCK)
    return tl.load(ptr + lane, mask=lane < left, other=0).to(tl.float32)


@triton.jit
def store(ptr, values, left, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(ptr + lane, values.to(ptr.dtype.element_ty), mask=lane < left)


@triton.jit
def load_rgb(ptr, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Levels of BLOCK pixels from ptr on: int32 in 0..255, in order."""
    if GROUP == 1:
        lane = tl.arange(0, BLOCK)
        red = tl.load(ptr + lane * 3, mask=lane < left, other=0).to(tl.int32)
        green = tl.load(ptr + lane * 3 + 1, mask=lane < left, other=0).to(tl.int32)
        blue = tl.load(ptr + lane * 3 + 2, mask=lane < left, other=0).to(tl.int32)
    else:
        words = ptr.to(tl.pointer_type(tl.int32))
        if GROUP == 4:
            group = tl.arange(0, BLOCK // 4)
            inside = group * 4 < left
            first = tl.load(words + group * 3, mask=inside, other=0)
            second = tl.load(words + group * 3 + 1, mask=inside, other=0)
            third = tl.load(words + group * 3 + 2, mask=inside, other=0)
        else:
            pair, inside = _word_pairs(left, BLOCK)
            word0, word1 = tl.split(tl.load(words + pair, mask=inside, other=0))
            word2, word3 = tl.split(tl.load(words + pair + 2, mask=inside, other=0))
            word4, word5 = tl.split(tl.load(words + pair + 4, mask=inside, other=0))
            first, second, third = tl.interleave(word0, word3), tl.interleave(word1, word4), tl.interleave(word2, word5)
        red = in_order(first & 255, (first >> 24) & 255, (second >> 16) & 255, (third >> 8) & 255)
        green = in_order((first >> 8) & 255, second & 255, (second >> 24) & 255, (third >> 16) & 255)
        blue = in_order((first >> 16) & 255, (second >> 8) & 255, third & 255, (third >> 24) & 255)
    return red, green, blue


@triton.jit
def store_rgb(ptr, red, green, blue, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of load_rgb. A level is the low 24 bits of an int32."""
    if GROUP == 1:
        lane = tl.arange(0, BLOCK)
        tl.store(ptr + lane * 3, red.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 1, green.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 2, blue.to(tl.uint8), mask=lane < left)
    else:
        words = ptr.to(tl.pointer_type(tl.int32))
        red0, red1, red2, red3 = by_fours(red, BLOCK)
        green0, green1, green2, green3 = by_fours(green, BLOCK)
        blue0, blue1, blue2, blue3 = by_fours(blue, BLOCK)
        first = _word(red0, green0, blue0, red1)
        second = _word(green1, blue1, red2, green2)
        third = _word(blue2, red3, green3, blue3)
        if GROUP == 4:
            group = tl.arange(0, BLOCK // 4)
            inside = group * 4 < left
            tl.store(words + group * 3, first, mask=inside)
            tl.store(words + group * 3 + 1, second, mask=inside)
            tl.store(words + group * 3 + 2, third, mask=inside)
        else:
            pair, inside = _word_pairs(left, BLOCK)
            word0, word3 = tl.split(tl.reshape(first, (BLOCK // 8, 2)))
            word1, word4 = tl.split(tl.reshape(second, (BLOCK // 8, 2)))
            word2, word5 = tl.split(tl.reshape(third, (BLOCK // 8, 2)))
            tl.store(words + pair, tl.join(word0, word1), mask=inside)
            tl.store(words + pair + 2, tl.join(word2, word3), mask=inside)
            tl.store(words + pair + 4, tl.join(word4, word5), mask=inside)


@triton.jit
def _word_pairs(left, BLOCK: tl.constexpr):
    """Where the first two of the six words of each eight pixels are, and whether those pixels exist."""
    group = tl.arange(0, BLOCK // 8)[:, None]
    return group * 6 + tl.arange(0, 2)[None, :], group * 8 < left


@triton.jit
def _word(one, two, three, four):
    return (one & 255) + (two << 8) + (three << 16) + (four << 24)


@triton.jit
def store_pairs(ptr, one, two, left, BLOCK: tl.constexpr):
    """Two channels, channels last."""
    lane = tl.arange(0, 2 * BLOCK)
    tl.store(ptr + lane, tl.interleave(one, two).to(ptr.dtype.element_ty), mask=lane < 2 * left)


@triton.jit
def store_triples(ptr, one, two, three, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Three channels, channels last; in runs of four values where pixels come in groups."""
    lane = tl.arange(0, BLOCK)
    if GROUP > 1:
        one0, one1, one2, one3 = by_fours(one, BLOCK)
        two0, two1, two2, two3 = by_fours(two, BLOCK)
        three0, three1, three2, three3 = by_fours(three, BLOCK)
        place = ptr + (lane // 4) * 12 + lane % 4
        inside = lane < left
        tl.store(place, in_order(one0, two0, three0, one1).to(ptr.dtype.element_ty), mask=inside)
        tl.store(place + 4, in_order(two1, three1, one2, two2).to(ptr.dtype.element_ty), mask=inside)
        tl.store(place + 8, in_order(three2, one3, two3, three3).to(ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(ptr + lane * 3, one.to(ptr.dtype.element_ty), mask=lane < left)
        tl.store(ptr + lane * 3 + 1, two.to(ptr.dtype.element_ty), mask=lane < left)
        tl.store(ptr + lane * 3 + 2, three.to(ptr.dtype.element_ty), mask=lane < left)


@triton.jit
def in_order(one, two, three, four):
    """Four vectors as one: the first value of each, then the second of each, and so on."""
    return tl.interleave(tl.interleave(one, three), tl.interleave(two, four))


@triton.jit
def by_fours(values, BLOCK: tl.constexpr):
    """The first, second, third and fourth of every four values."""
    even, odd = tl.split(tl.reshape(values, (BLOCK // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


# ---- color ----

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
    """8-bit sRGB levels to linear values (IEC 61966-2-1), within 1e-4 Lab units; if not EXACT, for 16 bits, 6e-4.

    A line, and from the knee on a polynomial on top of it: only 256 inputs exist.
    """
    value = (level | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # 2^23 + level, which is cheaper to make
    curved = tl.maximum(value, SRGB_ENCODED_KNEE * 255)
    line = value * (1 / 255 / SRGB_SLOPE)
    if EXACT:
        return polynomial(curved, DECODE, 9, 1, line)
    else:
        return polynomial(curved, DECODE_16_BITS, 7, 1, line)


@triton.jit
def to_level(linear):
    """Linear values to sRGB levels, within 0.01 before rounding, clamped to the gamut: the low 24 bits of an int32."""
    linear = tl.minimum(tl.maximum(linear, 0.0), 1.0)
    curved = tl.maximum(linear, SRGB_LINEAR_KNEE)
    power = polynomial(tl.rsqrt(tl.rsqrt(curved)), ENCODE_8_BITS, 4, 255)
    # rounds to 2^23 + level
    return (power + (linear - curved) * (SRGB_SLOPE * 255) + 8388608.0).to(tl.int32, bitcast=True)


@triton.jit
def srgb_encode(linear):
    """Linear values to sRGB values, 0..1 in the gamut, not clamped; and the slope there."""
    curved = tl.maximum(linear, SRGB_LINEAR_KNEE)
    inverse_root = tl.rsqrt(curved)
    power = polynomial(tl.rsqrt(inverse_root), ENCODE, 8)
    slope = (power + SRGB_OFFSET) * inverse_root * inverse_root * (1 / SRGB_GAMMA)
    is_curved = linear > SRGB_LINEAR_KNEE
    return tl.where(is_curved, power, linear * SRGB_SLOPE), tl.where(is_curved, slope, SRGB_SLOPE)


@triton.jit
def lab_f(t, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """SCALE times CIE's f for t up to 1: the cube root, and below its knee the line that touches it there."""
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
    """Levels to L, a, b as the networks see them."""
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
    """L, a, b as the networks see them to f of X, Y, Z; that of Z may be below 0, where it counts as 0."""
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
