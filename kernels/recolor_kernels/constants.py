"""Constants of color, each written once: for the reference, the kernels, and `fit.py`, which fits the polynomials.

The values are those of scikit-image's `skimage.color`. Its XYZ matrix and white have six digits, so that grays are off
by up to 0.005 in a* and b*.
"""

# ---- sRGB (IEC 61966-2-1): values in [0, 1] ----

SRGB_SLOPE = 12.92  # encoded = SRGB_SLOPE * linear, up to the knee
SRGB_SCALE, SRGB_OFFSET, SRGB_GAMMA = 1.055, 0.055, 2.4  # encoded = scale * linear ** (1 / gamma) - offset, beyond
SRGB_LINEAR_KNEE, SRGB_ENCODED_KNEE = 0.0031308, 0.04045  # the knee, as a linear and as an encoded value

LUMA_REC601 = (0.299, 0.587, 0.114)  # of encoded R, G, B

# ---- CIE XYZ and L*a*b*, D65, 2 degree observer ----

XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
RGB_FROM_XYZ = (  # the inverse, in float64
    (3.2404813432005266, -1.537151516271318, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.041555926558292836),
    (0.05564663913517715, -0.20404133836651123, 1.0573110696453443),
)
WHITE_D65 = (0.95047, 1.0, 1.08883)

# f(t) = cube root of t beyond the knee, else LAB_SLOPE * t + LAB_OFFSET
LAB_KNEE, LAB_F_KNEE = 0.008856, 0.2068966  # the knee, as t and as f(t)
LAB_SLOPE, LAB_OFFSET = 7.787, 16 / 116
# L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)), b* = 200 (f(Y) - f(Z))
LIGHTNESS_FACTOR, LIGHTNESS_OFFSET, A_FACTOR, B_FACTOR = 116, 16, 500, 200

# ---- networks' ranges, about [-1, 1] ----

L_SCALE = 50.0  # L = L* / 50 - 1
AB_SCALE = 110.0  # ab = (a*, b*) / 110
RGB_SCALE = 127.5  # RGB = level / 127.5 - 1

# ---- CIEDE2000 as a loss ----

ROOT_EPSILON = 1e-4  # keeps roots differentiable where a color is gray or met exactly [Lab units squared]

# ---- polynomials of smallest maximum error, highest power first, by `python kernels/fit.py` ----

# Linear value of a level in 0..255, less the line level / 255 / SRGB_SLOPE; zero at the knee. For float32, and for
# 16-bit results.
DECODE = (
    4.88049458e-23, -6.02867092e-20, 3.2263212e-17, -9.9497582e-15, 2.02179146e-12,
    -3.13115349e-10, 5.80714497e-08, 7.27732202e-06, -0.000162283299, 0.000839289282,
)  # fmt: skip
DECODE_16_BITS = (
    1.66023608e-18, -1.67428055e-15, 7.29025241e-13, -1.94518109e-10,
    5.18260707e-08, 7.45542666e-06, -0.000164741234, 0.000851695378,
)  # fmt: skip

# Cube root of t in [LAB_KNEE, 1], in powers of t ** (1/4).
CUBE_ROOT = (
    -0.0753466163, 0.4102095, -0.982021993, 1.37958575, -1.32155829, 1.15806798, 0.439784275, -0.00872073898
)  # fmt: skip
CUBE_ROOT_16_BITS = (-0.0674676142, 0.294885849, -0.581871087, 0.868035783, 0.500325689, -0.0139123087)

# sRGB value of a linear value x in [SRGB_LINEAR_KNEE, 1], in powers of x ** (1/4); the second for levels of 8 bits.
ENCODE = (
    0.0918004332, -0.526037039, 1.33219182, -1.9812106, 1.96543856, -1.4822596, 1.54633618, 0.111458615, -0.0577182905
)  # fmt: skip
ENCODE_8_BITS = (0.0813299884, -0.335501626, 1.12268172, 0.196135816, -0.0646115293)

# arctan(x) / x for x in [0, 1], in powers of x ** 2; the error counted is that of arctan(x).
ARC_TANGENT = (
    -0.004056098222310615, 0.02186825937663138, -0.05591961896567749, 0.09642703915721741,
    -0.13908816133291202, 0.19946600491735897, -0.33329863607805477, 0.9999993362266717,
)  # fmt: skip
