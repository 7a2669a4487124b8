"""How close is equal. Every tolerance of the tests stands here, and none is loosened to pass."""

# Lab values of the float32 reference against scikit-image in float64 [Lab units].
LAB_FLOAT32 = 1e-3
LAB_FLOAT64 = 1e-9

# Lab values of the float32 kernels against float64, over all 16,777,216 colors [Lab units]; and how far from them the
# same values are in bfloat16: 8 bits for values up to 100 in L*, 110 in a* and b*.
LAB_KERNEL = 1e-3
LAB_BFLOAT16_WORST = 0.216
LAB_BFLOAT16_MEAN = 0.06

# float32 kernels against the float32 reference, in the networks' range of [-1, 1].
KERNEL_FLOAT32 = 1e-5

# Ranges of [-1, 1], and levels of gray against Pillow's rounding to integers [levels of 255].
RANGE = 1e-6
GRAY_LEVELS = 0.51

# Means over ten thousand fair coins: four standard deviations.
FAIR_COIN = 0.02

# Mean ab errors, float32 against scikit-image's float64, relative.
AB_ERROR_RELATIVE = 1e-5

# Parameters and Adam's moments after five steps, engines against plain PyTorch.
TWIN_ABSOLUTE = 1e-6
TWIN_MOMENT_RELATIVE = 1e-4

# Losses of one rank against two ranks at the same global batch, relative.
RANKS_FLOAT32_5_STEPS = 1e-5
RANKS_FLOAT32_20_STEPS = 1e-3
RANKS_FLOAT64 = 1e-9

# L* of a colored photograph against the photograph's own, mean absolute [Lab units]: half a level of 8 bits and gamut.
LUMINANCE = 1.0

# DALI's decode of a lossy or converted photograph against Pillow's, worst pixel [levels of 255].
DECODE_LEVELS = 3
