"""What the kernels share: where a program works, loads and stores of pixels, and the mathematics of color.

A program works on up to BLOCK pixels of one picture. Whatever depends on the program's number is computed in 64 bits,
once a program; what depends on the place within the block is computed in 32 bits, once a pixel.
uint8 NHWC moves as 32-bit words, three for four pixels, wherever pictures start at a word (WORDS); else byte by byte.
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
def load_rgb(ptr, left, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Levels of BLOCK pixels from ptr on: int32, in order."""
    if WORDS:
        group = tl.arange(0, BLOCK // 4)
        inside = group * 4 < left
        words = ptr.to(tl.pointer_type(tl.int32)) + group * 3
        first = tl.load(words, mask=inside, other=0)
        second = tl.load(words + 1, mask=inside, other=0)
        third = tl.load(words + 2, mask=inside, other=0)
        red = in_order(first & 255, (first >> 24) & 255, (second >> 16) & 255, (third >> 8) & 255)
        green = in_order((first >> 8) & 255, second & 255, (second >> 24) & 255, (third >> 16) & 255)
        blue = in_order((first >> 16) & 255, (second >> 8) & 255, third & 255, (third >> 24) & 255)
    else:
        lane = tl.arange(0, BLOCK)
        red = tl.load(ptr + lane * 3, mask=lane < left, other=0).to(tl.int32)
        green = tl.load(ptr + lane * 3 + 1, mask=lane < left, other=0).to(tl.int32)
        blue = tl.load(ptr + lane * 3 + 2, mask=lane < left, other=0).to(tl.int32)
    return red, green, blue


@triton.jit
def store_rgb(ptr, red, green, blue, left, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of load_rgb, from int32 levels in 0..255."""
    if WORDS:
        group = tl.arange(0, BLOCK // 4)
        inside = group * 4 < left
        words = ptr.to(tl.pointer_type(tl.int32)) + group * 3
        red0, red1, red2, red3 = by_fours(red, BLOCK)
        green0, green1, green2, green3 = by_fours(green, BLOCK)
        blue0, blue1, blue2, blue3 = by_fours(blue, BLOCK)
        tl.store(words, red0 | (green0 << 8) | (blue0 << 16) | (red1 << 24), mask=inside)
        tl.store(words + 1, green1 | (blue1 << 8) | (red2 << 16) | (green2 << 24), mask=inside)
        tl.store(words + 2, blue2 | (red3 << 8) | (green3 << 16) | (blue3 << 24), mask=inside)
    else:
        lane = tl.arange(0, BLOCK)
        tl.store(ptr + lane * 3, red.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 1, green.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 2, blue.to(tl.uint8), mask=lane < left)


@triton.jit
def store_pairs(ptr, one, two, left, BLOCK: tl.constexpr):
    """Two channels, channels last."""
    lane = tl.arange(0, 2 * BLOCK)
    tl.store(ptr + lane, tl.interleave(one, two).to(ptr.dtype.element_ty), mask=lane < 2 * left)


@triton.jit
def store_triples(ptr, one, two, three, left, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Three channels, channels last; where WORDS says that pixels come in fours, in runs of four values."""
    lane = tl.arange(0, BLOCK)
    if WORDS:
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


# ---- color: scikit-image's constants ----


@triton.jit
def srgb_decode(level):
    """8-bit sRGB levels to linear values (IEC 61966-2-1). The power is a polynomial: only 256 inputs exist.

    Least squares over the levels above the knee, weighted for the smallest worst error in L*a*b*: 2e-4 Lab units.
    """
    value = level.to(tl.float32) * (1 / 255)
    power = 0.18991147124174498
    power = power * value - 0.9376594615826623
    power = power * value + 2.01153698483126
    power = power * value - 2.494529787605562
    power = power * value + 2.0441790079907545
    power = power * value - 1.2783881524375589
    power = power * value + 0.9539636186206848
    power = power * value + 0.47418333199965146
    power = power * value + 0.03596386600703255
    power = power * value + 0.0008403982488610302
    return tl.where(level > 10, power, value * (1 / 12.92))


@triton.jit
def srgb_encode(linear):
    """Linear values to sRGB values, and the root in them; 0..1 in the gamut, not clamped."""
    root = tl.exp2(tl.log2(tl.maximum(linear, 1e-9)) * (1 / 2.4))
    return tl.where(linear > 0.0031308, 1.055 * root - 0.055, 12.92 * linear), root


@triton.jit
def srgb_encode_slope(linear, root):
    return tl.where(linear > 0.0031308, (1.055 / 2.4) * root / tl.maximum(linear, 1e-9), 12.92)


@triton.jit
def lab_f(t):
    return tl.where(t > 0.008856, tl.exp2(tl.log2(tl.maximum(t, 1e-9)) * (1 / 3)), 7.787 * t + 16 / 116)


@triton.jit
def lab_f_inverse(f):
    return tl.where(f > 0.2068966, f * f * f, (f - 16 / 116) * (1 / 7.787))


@triton.jit
def lab_f_inverse_slope(f):
    return tl.where(f > 0.2068966, 3 * f * f, 1 / 7.787)


@triton.jit
def rgb_to_lab_f(red, green, blue):
    """Levels to f(X/Xn), f(Y/Yn), f(Z/Zn)."""
    r, g, b = srgb_decode(red), srgb_decode(green), srgb_decode(blue)
    # xyz_from_rgb, each row divided by the D65 white
    fx = lab_f((0.412453 / 0.95047) * r + (0.357580 / 0.95047) * g + (0.180423 / 0.95047) * b)
    fy = lab_f(0.212671 * r + 0.715160 * g + 0.072169 * b)
    fz = lab_f((0.019334 / 1.08883) * r + (0.119193 / 1.08883) * g + (0.950227 / 1.08883) * b)
    return fx, fy, fz


@triton.jit
def rgb_to_lab(red, green, blue):
    """Levels to L, a, b as the networks see them."""
    fx, fy, fz = rgb_to_lab_f(red, green, blue)
    return fy * (116 / 50) - (16 / 50 + 1), (fx - fy) * (500 / 110), (fy - fz) * (200 / 110)


@triton.jit
def lab_to_f(lightness, a, b):
    """L, a, b as the networks see them to f of X, Y, Z; that of Z may be below 0, where it counts as 0."""
    fy = (lightness + 1) * (50 / 116) + 16 / 116
    return fy + a * (110 / 500), fy, fy - b * (110 / 200)


@triton.jit
def f_to_linear(fx, fy, fz):
    """f of X, Y, Z to linear RGB, by the inverse of xyz_from_rgb."""
    x = lab_f_inverse(fx) * 0.95047
    y = lab_f_inverse(fy)
    z = lab_f_inverse(tl.maximum(fz, 0.0)) * 1.08883
    red = 3.2404813432005266 * x - 1.537151516271318 * y - 0.4985363261688878 * z
    green = -0.9692549499965682 * x + 1.8759900014898907 * y + 0.041555926558292836 * z
    blue = 0.05564663913517715 * x - 0.20404133836651123 * y + 1.0573110696453443 * z
    return red, green, blue
