"""`python kernels/fit.py`: fits the polynomials of recolor_kernels/constants.py and prints them beside the ones there.

Each polynomial minimizes the maximum error (Lawson's iteratively reweighted least squares), in float64. Roots are
polynomials in the fourth root, which two reciprocal square roots give for two instructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recolor_kernels import constants
from recolor_kernels.constants import (
    A_FACTOR,
    B_FACTOR,
    LAB_KNEE,
    LAB_SLOPE,
    LIGHTNESS_FACTOR,
    SRGB_ENCODED_KNEE,
    SRGB_GAMMA,
    SRGB_LINEAR_KNEE,
    SRGB_OFFSET,
    SRGB_SCALE,
    SRGB_SLOPE,
)

Vector = NDArray[np.float64]

ROUNDS = 400  # of reweighting; 60 come within 0.2 % of the smallest maximum error
POINTS = 4000  # at which a root or an arc tangent is fitted


@dataclass(frozen=True)
class Problem:
    """One polynomial: its name in constants.py, and what it is to approximate at some points."""

    name: str
    basis: Vector  # (points, coefficients): highest power first
    target: Vector  # (points,)
    weight: Vector  # (points,): how much an error counts
    unit: str  # of weighted errors times factor
    factor: float = 1

    def max_error(self, coefficients: Vector | Sequence[float]) -> float:
        """The largest error [unit] over all points."""
        return float((np.abs(self.basis @ np.asarray(coefficients) - self.target) * self.weight).max()) * self.factor

    def fit(self, rounds: int = ROUNDS) -> Vector:
        """The coefficients with the smallest maximum error that any round found."""
        scale = np.abs(self.basis).max(axis=0)
        share = np.ones(len(self.target))
        best, least = np.zeros(self.basis.shape[1]), np.inf
        for _ in range(rounds):
            rows = np.sqrt(share) * self.weight
            found = np.linalg.lstsq(self.basis / scale * rows[:, None], self.target * rows, rcond=None)[0] / scale
            error = np.abs(self.basis @ found - self.target) * self.weight
            if error.max() < least:
                best, least = found, float(error.max())
            share = np.maximum(share * error / error.max(), 1e-14)
            share /= share.max()
        return best


def problems() -> list[Problem]:
    """Every polynomial that the kernels use, with the unit in which its error counts."""
    return [
        _decode("DECODE", 9),
        _decode("DECODE_16_BITS", 7),
        _cube_root("CUBE_ROOT", 7),
        _cube_root("CUBE_ROOT_16_BITS", 5),
        _encode("ENCODE", 8),
        _encode("ENCODE_8_BITS", 4),
        _arc_tangent("ARC_TANGENT", 7),
    ]


def _decode(name: str, degree: int) -> Problem:
    """sRGB levels from the knee on to linear values, less the line up to the knee; errors in Lab units.

    Weighted by the steepest slope of L*, a* or b* over one channel.
    """
    level = np.append(SRGB_ENCODED_KNEE * 255, np.arange(11, 256.0))
    line = level / 255 / SRGB_SLOPE
    linear = np.append(line[0], ((level[1:] / 255 + SRGB_OFFSET) / SRGB_SCALE) ** SRGB_GAMMA)
    xyz_from_rgb = np.array(constants.XYZ_FROM_RGB) / np.array(constants.WHITE_D65)[:, None]
    weight = np.zeros(len(level))
    for channel in range(3):
        share = xyz_from_rgb[:, channel, None]
        t = share * linear
        slope = np.where(t > LAB_KNEE, t ** (-2 / 3) / 3, LAB_SLOPE) * share
        steepest = [
            LIGHTNESS_FACTOR * slope[1],
            A_FACTOR * np.abs(slope[0] - slope[1]),
            B_FACTOR * np.abs(slope[1] - slope[2]),
        ]
        weight = np.maximum(weight, np.max(steepest, axis=0))
    return Problem(name, np.vander(level, degree + 1), linear - line, weight, "Lab units")


def _cube_root(name: str, degree: int) -> Problem:
    fourth_root = _chebyshev_points(LAB_KNEE**0.25)
    return _root(name, degree, fourth_root, fourth_root ** (4 / 3), A_FACTOR, "units of a*")


def _encode(name: str, degree: int) -> Problem:
    fourth_root = _chebyshev_points(SRGB_LINEAR_KNEE**0.25)
    encoded = SRGB_SCALE * fourth_root ** (4 * (1 / SRGB_GAMMA)) - SRGB_OFFSET
    return _root(name, degree, fourth_root, encoded, 255, "levels")


def _root(name: str, degree: int, fourth_root: Vector, target: Vector, factor: float, unit: str) -> Problem:
    return Problem(name, np.vander(fourth_root, degree + 1), target, np.ones(POINTS), unit, factor)


def _arc_tangent(name: str, degree: int) -> Problem:
    """x times a polynomial in x ** 2, for x in [0, 1]."""
    x = _chebyshev_points(0.0)
    return Problem(name, np.vander(x**2, degree + 1) * x[:, None], np.arctan(x), np.ones(POINTS), "radians")


def _chebyshev_points(low: float) -> Vector:
    """POINTS in [low, 1], dense at both ends."""
    middle, half = (1 + low) / 2, (1 - low) / 2
    points: Vector = middle - half * np.cos(np.linspace(0, np.pi, POINTS))
    return points


def main() -> None:
    """Print each polynomial as fitted now, and its error beside that of the one in constants.py."""
    for problem in problems():
        fitted, committed = problem.fit(), getattr(constants, problem.name)
        print(
            f"{problem.name}: maximum error {problem.max_error(fitted):.3g} {problem.unit}, "
            f"of the one in constants.py {problem.max_error(committed):.3g}"
        )
        print("  " + ", ".join(f"{coefficient:.9g}" for coefficient in fitted))


if __name__ == "__main__":
    main()
