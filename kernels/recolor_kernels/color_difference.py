"""Color differences of the kernels: CIEDE2000, and the part of it that ab decides, with its derivative.

Formula: Sharma, Wu and Dalal 2005, doi:10.1002/col.20070, weights 1. Hues are unit vectors instead of angles: one arc
tangent, no cosines, no wrapping at 360 degrees.
"""

import triton
import triton.language as tl

from recolor_kernels import color_math, constants

AB_SCALE = tl.constexpr(constants.AB_SCALE)
ARC_TANGENT = tl.constexpr(constants.ARC_TANGENT)
ROOT_EPSILON = tl.constexpr(constants.ROOT_EPSILON)
TINY = tl.constexpr(1e-20)  # avoids division by zero


@triton.jit
def ciede2000(l1, a1, b1, l2, a2, b2):
    """Delta E 2000 of two colors in Lab units."""
    stretch = _stretch(a1, b1, a2, b2)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = tl.sqrt(a1 * a1 + b1 * b1), tl.sqrt(a2 * a2 + b2 * b2)
    x1, y1, x2, y2 = (
        a1 / tl.maximum(c1, TINY),
        b1 / tl.maximum(c1, TINY),
        a2 / tl.maximum(c2, TINY),
        b2 / tl.maximum(c2, TINY),
    )
    chroma, d_chroma = (c1 + c2) * 0.5, c2 - c1
    # 2 sqrt(c1 c2) sin((h2 - h1) / 2): the chord between both directions
    chord = tl.sqrt(c1 * c2 * ((x1 - x2) * (x1 - x2) + (y1 - y2) * (y1 - y2)))
    d_hue = tl.where(x1 * y2 - x2 * y1 < 0, -chord, chord)
    # The mean hue is the direction of their sum. If they are nearly opposite, the sum is too short for a precise
    # direction; then the mean hue is perpendicular to their difference.
    turn = tl.where(x1 * y2 - x2 * y1 < 0, -1.0, 1.0)
    opposite = x1 * x2 + y1 * y2 < 0
    x = tl.where(opposite, turn * (y2 - y1), x1 + x2)
    y = tl.where(opposite, turn * (x1 - x2), y1 + y2)
    t, rotation = _of_hue(chroma, x, y)
    off = (l1 + l2) * 0.5 - 50
    by_l = (l2 - l1) / (1 + 0.015 * off * off / tl.sqrt(20 + off * off))
    by_c = d_chroma / (1 + 0.045 * chroma)
    by_h = d_hue / (1 + 0.015 * chroma * t)
    return tl.sqrt(tl.maximum(by_l * by_l + by_c * by_c + by_h * by_h + rotation * by_c * by_h, 0.0))


@triton.jit
def chroma_difference(a1, b1, a2, b2):
    """reference.chroma_difference of two colors in the networks' range, and its derivatives in a1 and b1.

    As precise for colors that nearly meet: all is computed from their difference, nothing cancels.
    """
    step_a, step_b = (a2 - a1) * AB_SCALE, (b2 - b1) * AB_SCALE
    a1, b1, a2, b2 = a1 * AB_SCALE, b1 * AB_SCALE, a2 * AB_SCALE, b2 * AB_SCALE
    stretch = _stretch(a1, b1, a2, b2)
    a1, a2, step_a = a1 * stretch, a2 * stretch, step_a * stretch
    square1, square2 = a1 * a1 + b1 * b1 + ROOT_EPSILON, a2 * a2 + b2 * b2 + ROOT_EPSILON
    inverse1, inverse2 = tl.rsqrt(square1), tl.rsqrt(square2)  # a division takes about ten instructions
    c1, c2, x, y = square1 * inverse1, square2 * inverse2, a1 * inverse1, b1 * inverse1
    chroma, d_chroma = (c1 + c2) * 0.5, (step_a * (a1 + a2) + step_b * (b1 + b2)) / (c1 + c2)
    t, rotation = _of_hue(chroma, x + a2 * inverse2, y + b2 * inverse2)
    turn = a1 * step_b - b1 * step_a
    rotation *= tl.where(turn > 0, 1.0, tl.where(turn < 0, -1.0, 0.0))
    # c2 times the difference of both directions, (a, b, root of ROOT_EPSILON) / c
    across_a, across_b, fade = step_a - x * d_chroma, step_b - y * d_chroma, d_chroma * inverse1
    chord = (across_a * across_a + across_b * across_b + fade * fade * ROOT_EPSILON) * (c1 * inverse2)
    by_scale_c, by_scale_h = 1 / (1 + 0.045 * chroma), 1 / (1 + 0.015 * chroma * t)
    by_c, by_h2 = d_chroma * by_scale_c, (chord + 2 * ROOT_EPSILON) * by_scale_h * by_scale_h
    inverse_h = tl.rsqrt(by_h2 + ROOT_EPSILON)
    rotated = rotation * ((by_h2 + ROOT_EPSILON) * inverse_h)
    square = by_c * (by_c + rotated) + by_h2 + ROOT_EPSILON
    half = 0.5 * tl.rsqrt(square)
    # Backward: in by_c; in by_h2, times by_scale_h; in the color's own direction and across it.
    d_by_c = (2 * by_c + rotated) * half
    d_by_h2 = (1 + 0.5 * rotation * by_c * inverse_h) * half * by_scale_h
    along = -d_by_c * (1 + 0.0225 * by_c) * by_scale_c - 0.015 * t * by_h2 * d_by_h2
    across = -2 * d_by_h2 * by_scale_h
    d_a, d_b = stretch * (along * x + across * across_a), along * y + across * across_b
    return 2 * square * half, d_a * AB_SCALE, d_b * AB_SCALE


@triton.jit
def _stretch(a1, b1, a2, b2):
    """The factor of a* of both colors."""
    return 1.5 - 0.5 * _of_seventh((tl.sqrt(a1 * a1 + b1 * b1) + tl.sqrt(a2 * a2 + b2 * b2)) * 0.5)


@triton.jit
def _of_hue(chroma, x, y):
    """The formula's T and R_T of a mean chroma and of a mean hue, that of a vector of any length (of length 0: 0)."""
    square = x * x + y * y
    inverse = tl.rsqrt(tl.maximum(square, TINY))
    x, y = tl.where(square < TINY, 1.0, x * inverse), y * inverse
    x2, y2 = x * x - y * y, 2 * x * y  # cosine and sine of 2 hue, then of 3 hue and 4 hue
    x3, y3 = x2 * x - y2 * y, y2 * x + x2 * y
    x4, y4 = x2 * x2 - y2 * y2, 2 * x2 * y2
    t = 1 - 0.17 * (0.8660254037844387 * x + 0.5 * y)  # cos(h - 30)
    t += 0.24 * x2
    t += 0.32 * (0.9945218953682733 * x3 - 0.10452846326765347 * y3)  # cos(3 h + 6)
    t -= 0.20 * (0.45399049973954675 * x4 + 0.8910065241883679 * y4)  # cos(4 h - 63)
    return t, -2 * _of_seventh(chroma) * _sine_of_blue(x, y)


@triton.jit
def _of_seventh(chroma):
    """sqrt(c^7 / (c^7 + 25^7))"""
    share = chroma * (1 / 25)
    cube = share * share * share
    seventh = cube * cube * share
    return tl.sqrt(seventh / (seventh + 1))


@triton.jit
def _sine_of_blue(x, y):
    """sin(60 degrees x exp(-((h - 275) / 25)^2)) of the hue with cosine x and sine y."""
    # cosine and sine of h - 275 degrees
    near = 0.08715574274765789 * x - 0.9961946980917455 * y
    aside = tl.abs(0.08715574274765789 * y + 0.9961946980917455 * x)
    # |h - 275 degrees| in [0, pi], by the arc tangent of a ratio in [0, 1]
    swap = aside > tl.abs(near)
    ratio = tl.minimum(aside, tl.abs(near)) / tl.maximum(tl.maximum(aside, tl.abs(near)), TINY)
    angle = _arc_tangent(ratio)
    angle = tl.where(swap, 1.5707963267948966 - angle, angle)
    angle = tl.where(near < 0, 3.141592653589793 - angle, angle)
    turns = angle * 2.291831180523293  # in units of 25 degrees
    phi = 1.0471975511965976 * tl.exp(-turns * turns)  # in [0, 60 degrees], where six terms of the sine are exact
    square = phi * phi
    series = 1 - square * (1 / 110)
    series = 1 - square * (1 / 72) * series
    series = 1 - square * (1 / 42) * series
    series = 1 - square * (1 / 20) * series
    series = 1 - square * (1 / 6) * series
    return tl.where(y < 0, phi * series, 0.0)  # h is in [0, 360), so that small hues are far from 275


@triton.jit
def _arc_tangent(ratio):
    """The arc tangent of a ratio in [0, 1], within 2e-7."""
    return color_math.polynomial(ratio * ratio, ARC_TANGENT, 7) * ratio
