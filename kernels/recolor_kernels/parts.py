"""What the kernels share: where a program works, loads and stores of pixels, and the mathematics of color.

A program works on up to BLOCK pixels of one picture. Whatever depends on the program's number is computed in 64 bits,
once a program; what depends on the place within the block is computed in 32 bits, once a pixel.
uint8 NHWC moves by GROUP pixels in a row a thread: 8, or 4, as whole 32-bit words; or 1, byte by byte.
"""

import triton
import triton.language as tl

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


# ---- color: scikit-image's constants, and polynomials from fit.py ----


@triton.jit
def srgb_decode(level, EXACT: tl.constexpr):
    """8-bit sRGB levels to linear values (IEC 61966-2-1), within 1e-4 Lab units; if not EXACT, for 16 bits, 6e-4.

    A line, and from the knee on a polynomial on top of it: only 256 inputs exist.
    """
    value = (level | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # 2^23 + level, which is cheaper to make
    curved = tl.maximum(value, 0.04045 * 255)
    if EXACT:
        power = 4.88049458e-23
        power = power * curved - 6.02867092e-20
        power = power * curved + 3.2263212e-17
        power = power * curved - 9.9497582e-15
        power = power * curved + 2.02179146e-12
        power = power * curved - 3.13115349e-10
        power = power * curved + 5.80714497e-08
        power = power * curved + 7.27732202e-06
        power = power * curved - 0.000162283299
        power = power * curved + (value * (1 / 255 / 12.92) + 0.000839289282)
    else:
        power = 1.66023608e-18
        power = power * curved - 1.67428055e-15
        power = power * curved + 7.29025241e-13
        power = power * curved - 1.94518109e-10
        power = power * curved + 5.18260707e-08
        power = power * curved + 7.45542666e-06
        power = power * curved - 0.000164741234
        power = power * curved + (value * (1 / 255 / 12.92) + 0.000851695378)
    return power


@triton.jit
def to_level(linear):
    """Linear values to sRGB levels, within 0.01 before rounding, clamped to the gamut: the low 24 bits of an int32."""
    linear = tl.minimum(tl.maximum(linear, 0.0), 1.0)
    curved = tl.maximum(linear, 0.0031308)
    fourth_root = tl.rsqrt(tl.rsqrt(curved))
    power = 0.0813299884 * 255
    power = power * fourth_root - 0.335501626 * 255
    power = power * fourth_root + 1.12268172 * 255
    power = power * fourth_root + 0.196135816 * 255
    power = power * fourth_root - 0.0646115293 * 255
    return (power + (linear - curved) * (12.92 * 255) + 8388608.0).to(tl.int32, bitcast=True)  # rounds to 2^23 + level


@triton.jit
def srgb_encode(linear):
    """Linear values to sRGB values, 0..1 in the gamut, not clamped; and the slope there."""
    curved = tl.maximum(linear, 0.0031308)
    inverse_root = tl.rsqrt(curved)
    fourth_root = tl.rsqrt(inverse_root)
    power = 0.0918004332
    power = power * fourth_root - 0.526037039
    power = power * fourth_root + 1.33219182
    power = power * fourth_root - 1.9812106
    power = power * fourth_root + 1.96543856
    power = power * fourth_root - 1.4822596
    power = power * fourth_root + 1.54633618
    power = power * fourth_root + 0.111458615
    power = power * fourth_root - 0.0577182905
    slope = (power + 0.055) * inverse_root * inverse_root * (1 / 2.4)
    return tl.where(linear > 0.0031308, power, 12.92 * linear), tl.where(linear > 0.0031308, slope, 12.92)


@triton.jit
def lab_f(t, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """SCALE times CIE's f for t up to 1: the cube root, and below its knee the line that touches it there."""
    curved = tl.maximum(t, 0.008856)
    fourth_root = tl.rsqrt(tl.rsqrt(curved))
    if EXACT:
        root = -0.0753466163 * SCALE
        root = root * fourth_root + 0.4102095 * SCALE
        root = root * fourth_root - 0.982021993 * SCALE
        root = root * fourth_root + 1.37958575 * SCALE
        root = root * fourth_root - 1.32155829 * SCALE
        root = root * fourth_root + 1.15806798 * SCALE
        root = root * fourth_root + 0.439784275 * SCALE
        root = root * fourth_root - 0.00872073898 * SCALE
    else:
        root = -0.0674676142 * SCALE
        root = root * fourth_root + 0.294885849 * SCALE
        root = root * fourth_root - 0.581871087 * SCALE
        root = root * fourth_root + 0.868035783 * SCALE
        root = root * fourth_root + 0.500325689 * SCALE
        root = root * fourth_root - 0.0139123087 * SCALE
    return root + (t - curved) * (7.787 * SCALE)


@triton.jit
def lab_f_inverse(f):
    return tl.where(f > 0.2068966, f * f * f, (f - 16 / 116) * (1 / 7.787))


@triton.jit
def lab_f_inverse_slope(f):
    return tl.where(f > 0.2068966, 3 * f * f, 1 / 7.787)


@triton.jit
def rgb_to_f(
    red, green, blue, X_SCALE: tl.constexpr, Y_SCALE: tl.constexpr, Z_SCALE: tl.constexpr, EXACT: tl.constexpr
):
    """Levels to f(X/Xn), f(Y/Yn), f(Z/Zn), each times its scale."""
    r, g, b = srgb_decode(red, EXACT), srgb_decode(green, EXACT), srgb_decode(blue, EXACT)
    # xyz_from_rgb, each row divided by the D65 white
    fx = lab_f((0.412453 / 0.95047) * r + (0.357580 / 0.95047) * g + (0.180423 / 0.95047) * b, X_SCALE, EXACT)
    fy = lab_f(0.212671 * r + 0.715160 * g + 0.072169 * b, Y_SCALE, EXACT)
    fz = lab_f((0.019334 / 1.08883) * r + (0.119193 / 1.08883) * g + (0.950227 / 1.08883) * b, Z_SCALE, EXACT)
    return fx, fy, fz


@triton.jit
def rgb_to_lab(red, green, blue, EXACT: tl.constexpr):
    """Levels to L, a, b as the networks see them."""
    fx, fy, fz = rgb_to_f(red, green, blue, 500 / 110, 1, 200 / 110, EXACT)
    return fy * (116 / 50) - (16 / 50 + 1), fx - fy * (500 / 110), fy * (200 / 110) - fz


@triton.jit
def lab_to_f(lightness, a, b):
    """L, a, b as the networks see them to f of X, Y, Z; that of Z may be below 0, where it counts as 0."""
    fy = (lightness + 1) * (50 / 116) + 16 / 116
    return fy + a * (110 / 500), fy, fy - b * (110 / 200)


@triton.jit
def f_to_linear(fx, fy, fz):
    """f of X, Y, Z to linear RGB, by the inverse of xyz_from_rgb, its columns times the D65 white."""
    x, y, z = lab_f_inverse(fx), lab_f_inverse(fy), lab_f_inverse(tl.where(fz < 0, 0.0, fz))
    red = (3.2404813432005266 * 0.95047) * x - 1.537151516271318 * y - (0.4985363261688878 * 1.08883) * z
    green = (-0.9692549499965682 * 0.95047) * x + 1.8759900014898907 * y + (0.041555926558292836 * 1.08883) * z
    blue = (0.05564663913517715 * 0.95047) * x - 0.20404133836651123 * y + (1.0573110696453443 * 1.08883) * z
    return red, green, blue
