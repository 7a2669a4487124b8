"""`python kernels/fit.py`: the fitted constants of recolor_kernels/parts.py, as they stand there.

Each polynomial has the smallest worst error (Lawson's reweighted least squares), in float64. Roots are polynomials in
the fourth root, which two reciprocal square roots give at the price of two instructions.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
WHITE_D65 = np.array([[0.95047], [1], [1.08883]])


def fit(basis: Vector, wanted: Vector, weight: Vector) -> tuple[Vector, float]:
    """Coefficients of a basis (columns) that make the worst weighted error smallest, and that error."""
    scale = np.abs(basis).max(axis=0)
    share = np.ones(len(wanted))
    best, least = np.zeros(basis.shape[1]), np.inf
    for _ in range(400):
        rows = np.sqrt(share) * weight
        found = np.linalg.lstsq(basis / scale * rows[:, None], wanted * rows, rcond=None)[0] / scale
        error = np.abs(basis @ found - wanted) * weight
        if error.max() < least:
            best, least = found, float(error.max())
        share = np.maximum(share * error / error.max(), 1e-14)
        share /= share.max()
    return best, least


def decode(degree: int) -> tuple[Vector, float]:
    """sRGB levels from the knee on to linear values, less the line that ends there; errors in Lab units.

    Weighted by the steepest slope of L*, a* or b* over one channel.
    """
    level = np.append(0.04045 * 255, np.arange(11, 256.0))
    line = level / 255 / 12.92
    linear = np.append(line[0], ((level[1:] / 255 + 0.055) / 1.055) ** 2.4)
    weight = np.zeros(len(level))
    for channel in range(3):
        share = (XYZ_FROM_RGB / WHITE_D65)[:, channel, None]
        t = share * linear
        slope = np.where(t > 0.008856, t ** (-2 / 3) / 3, 7.787) * share
        steepest = [116 * slope[1], 500 * np.abs(slope[0] - slope[1]), 200 * np.abs(slope[1] - slope[2])]
        weight = np.maximum(weight, np.max(steepest, axis=0))
    return fit(np.vander(level, degree + 1), linear - line, weight)


def power(low: float, exponent: float, degree: int, factor: float = 1, offset: float = 0) -> tuple[Vector, float]:
    """factor * x**exponent + offset for x in [low, 1], as a polynomial in x**(1/4)."""
    middle, half = (1 + low**0.25) / 2, (1 - low**0.25) / 2
    fourth_root = middle - half * np.cos(np.linspace(0, np.pi, 4000))
    wanted = factor * fourth_root ** (4 * exponent) + offset
    return fit(np.vander(fourth_root, degree + 1), wanted, np.ones(len(wanted)))


def show(name: str, unit: str, result: tuple[Vector, float], unit_size: float = 1) -> None:
    print(f"{name}: worst error {result[1] * unit_size:.2g} {unit}")
    print("  " + ", ".join(f"{coefficient:.9g}" for coefficient in result[0]))


if __name__ == "__main__":
    for degree in (9, 7):
        show(f"decode {degree}", "Lab units", decode(degree))
    for degree in (7, 5):
        show(f"cube root {degree}", "units of a*", power(0.008856, 1 / 3, degree), 500)
    for degree in (8, 4):
        show(f"encode {degree}", "levels", power(0.0031308, 1 / 2.4, degree, 1.055, -0.055), 255)
