"""How close is equal. Every tolerance of the tests stands here, and none is loosened to pass."""

# Lab values of the float32 reference against scikit-image in float64 [Lab units].
LAB_FLOAT32 = 1e-3
LAB_FLOAT64 = 1e-9

# Lab values of the float32 kernels against float64, over all 16,777,216 colors [Lab units]; of the cheaper computation
# behind 16-bit results, before it is rounded; and after rounding to bfloat16: 8 bits for values up to 100 in L*, 110 in
# a* and b*.
LAB_KERNEL = 1e-3
LAB_KERNEL_16_BITS = 5e-3
LAB_BFLOAT16_WORST = 0.22
LAB_BFLOAT16_MEAN = 0.06

# Conversions by kernels against the float32 reference, in the networks' range of [-1, 1]: beside the rounding of the
# type, LAB_KERNEL and LAB_KERNEL_16_BITS by 100 or more.
KERNEL_FLOAT32 = 1e-5
KERNEL_16_BITS = 5e-5

# Means of a few thousand float32 numbers of one sign, summed in any order, each with an error of a few units in the
# last place; their gradients, relative, and relative to the largest of them where 1 - sigmoid cancels: two units in the
# last place of a sigmoid near 1, over 0.25, the steepest slope of the l1 criterion. Gradients in bfloat16 and float16
# may be this many units of their type apart: made and then scaled, they are rounded twice, by half a unit on a GPU, and
# cut by up to one in Triton's interpreter; the reference rounds once. float64 has no reason to
# differ in more than its last bits.
LOSS_RELATIVE = 2e-6
GRADIENT_RELATIVE = 2e-6
GRADIENT_OF_LARGEST = 5e-7
GRADIENT_UNITS = 3
FLOAT64_RELATIVE = 1e-12

# Normalized features and their gradients, relative to the largest of them: differences from a mean over a few hundred
# values, in float32, summed in any order, of which two more sums are subtracted in the gradients.
NORM_OF_LARGEST = 2e-6
# Of values of a standard deviation of 1 around 4096, of which float32 has steps of 5e-4: the mean's rounding.
NORM_LARGE_MEAN = 1e-3
# Networks in float64 with fused norms and with torch's, relative to the largest value: sums in another order.
FUSED_FLOAT64 = 1e-9

# L1 against the Lab values of a picture: the error of the mean is below that of the worst value, LAB_KERNEL / 110.
LAB_LOSS = 1e-5

# The loss that is CIEDE2000 at equal L* against the metric's formula in float64 [Delta E 2000]: the square root of what
# keeps it differentiable.
CHROMA_DIFFERENCE = 0.018
CHROMA_DIFFERENCE_RELATIVE = 1e-3

# Its gradients, relative to the largest of them, float32 against float64 (measured 3.8e-5, at vivid blues of one hue,
# where the rotation multiplies what is left of their difference) and two float32 computations. Its value where hues are
# opposite, whose mean hue is that of rounding. And two float64 computations, of which the reference subtracts
# directions (measured 2e-10).
CIEDE2000_GRADIENT = 1e-4
CIEDE2000_OPPOSITE = 0.02
CIEDE2000_FLOAT64 = 1e-9

# RGB in [-1, 1] from Lab: what plain float32 arithmetic loses against float64 over [-1.2, 1.2]^3 (measured 2.2e-5: 12.9
# times the rounding of linear RGB in the dark); two float32 computations against each other lose it twice.
RGB_FLOAT32 = 3e-5
RGB_KERNEL = 6e-5
RGB_FLOAT64 = 1e-9

# Share of levels that two float32 computations of RGB round apart: RGB_KERNEL times 127.5, below and above each half.
ROUNDED_THE_OTHER_WAY = 1.6e-2

# Gradients of RGB from Lab, per pixel, relative to 1 + the largest of its three: float32 against float64 (measured
# 9.4e-5, slopes go with linear RGB to the power -0.58) and two float32 computations. Colors within EDGE of a kink in
# linear RGB (0, 0.0031308, 1) may fall on either side of it.
RGB_GRADIENT_FLOAT32 = 1e-4
RGB_GRADIENT_KERNEL = 2e-4
RGB_EDGE = 1e-5

# Delta E 2000 of a pair of colors, float32 against scikit-image in float64, both with Lab values within LAB_KERNEL
# [Delta E; grays weigh a* by 1.5]; and of equal colors.
DELTA_E = 1.5e-3
# Of a pair with a gray, whose hue is that of the constants' last digits (a* and b* of 0.005).
DELTA_E_GRAY = 5e-3
DELTA_E_EQUAL = 1e-5

# Mean ab error against scikit-image's float64 [Lab units]: the error of a mean is below that of its worst value.
AB_ERROR = 1e-3

# Mean squared differences of integers summed in float32, relative; psnr is 4.34 times their logarithm [dB]; and
# colorfulness, the root of a variance of integers, of its own value.
MSE_RELATIVE = 1e-6
PSNR_DECIBELS = 1e-5
COLORFULNESS_RELATIVE = 1e-5

# The kernel's metrics against the reference's, both of float32 Lab values, absolute or relative.
METRIC_KERNEL = 1e-3

# Maximum error of a polynomial of nine digits relative to that of a new fit (measured 1.066, for the cube root).
FITTED_AGAIN = 1.07

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

# Prepared photographs against Pillow's bilinear resize of the whole photograph, lossless ones, worst pixel: half a
# level for each of two passes [levels of 255].
PREPARED_LEVELS = 1

# Prepared as JPEG, smooth paintings of 128 x 128, against their pixels, mean absolute of the worst one [levels of 255]:
# Pillow's own at quality 85 is at 1.7, at 75 at 2.1.
PREPARED_JPEG_MEAN = 2.0

# What one photograph that is refused may add to a process that prepares small ones, at its peak [MiB]. The bomb's
# pixels would add 10,300.
REFUSED_PEAK_MIB = 100

# A run that goes on elsewhere: its first loss beside its last one before, relative; other images and other dropout.
LOSS_CONTINUES = 0.1

# A batch in parts, or in another memory layout, beside the whole: losses of 3 steps, relative (float32 sums in another
# order). Lower precision beside float32: losses of the first step. A clipped gradient's length.
PARTS_RELATIVE = 1e-4
LOW_PRECISION_RELATIVE = 0.02
CLIP_RELATIVE = 1e-3

# Measurements against independent implementations, absolute, in each one's own unit; SSIM in float64 against float64.
INDEPENDENT = 1e-4
SSIM_FLOAT64 = 1e-9

# Pictures from Lab in float32 against float64: levels that are rounded the other way.
ROUNDED_LEVELS = 1
# Mean color difference of such pictures against those of float64: some pixels are a level apart [Delta E].
ROUNDED_MEAN = 1e-3

# Amplitude of what repeats every 2 or 4 pixels in an output of a flat gray, in the range of [-1, 1]: below it, float32
# rounding and what zero padding leaves far from the borders.
CHECKERBOARD = 1e-5

# L* of vivid colors after rounding to 8 bits, against the L* that was asked for [Lab units]: half a level in each
# channel, where sRGB is steepest, and the last step of the bisection.
VIVID_LIGHTNESS = 0.5

# Images colored by weights in float16 against those in float32 [levels of 255].
HALF_WEIGHTS_LEVELS = 2

# Color enlarged along edges: a weighted mean of float32 numbers below 1, and differences of their products.
GUIDED = 1e-5

# A Frechet distance of features to themselves: the square root of a product of covariances of 1,280 features, of which
# torchmetrics takes float64 eigenvalues.
FRECHET_OF_EQUALS = 1e-3

# The mean of two float32 predictions, added in either order, of convolutions that sum in either direction.
MIRRORED = 1e-6

# Colors through LittleCMS, which computes in 16 bits, against float64, on either side of rounding to 8 [levels]; L* of
# linear gray, whose first 8-bit steps are long; JPEG by two decoders.
PROFILE_LEVELS = 1.5
PROFILE_LIGHTNESS = 1.0
DECODERS_LEVELS = 2

# Amplitude of what repeats every 2, 4 or 8 pixels in the color of a flat gray [Lab units]; eyes see 1.
PATTERN = 1e-3

# A smooth photograph through HEVC at quality 95 [mean levels].
LOSSY_CODEC = 3

# One photograph colored twice by one network: sums of float32 depend on where memory lies [levels of 255].
ONE_NETWORK_TWICE = 1

# A preview against the full size made smaller: JPEG, and the network sees what was resized twice [mean levels of 255].
PREVIEW = 2.0

# How many times slower a rank is, from a minute of samples of where it is found, one a second [ratio].
STRAGGLER = 0.5

# Where the wall clock of a run went, beside an outside clock [share of all of it].
ACCOUNT = 0.02

# A colorizer in a file for other programs against ours, CIEDE2000 of a photograph: mean, and worst of several. Both
# round the shrunk photograph and the result to 8 bits, here and there the other way. Measured: docs/export.md.
PORTABLE_MEAN = 0.3
PORTABLE_WORST = 0.5

# Shares of soft targets, float32 against float64: exp of half a squared distance over 25, where distances of
# 20 Lab units are off by 1e-5.
SOFT_TARGETS = 1e-5
