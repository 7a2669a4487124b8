"""The polynomials in constants.py are those that `kernels/fit.py` fits."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest

from recolor_kernels import constants
from tests.conftest import ROOT
from tests.support import tolerances


def load_fit() -> ModuleType:
    """kernels/fit.py, which is a script beside the package."""
    spec = importlib.util.spec_from_file_location("fit", ROOT / "kernels" / "fit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


fit = load_fit()
PROBLEMS = {problem.name: problem for problem in fit.problems()}
# What the comments and docstrings of the kernels promise, before float32 rounds, in each one's unit.
STATED = {
    "DECODE": 7e-5,
    "DECODE_16_BITS": 5.5e-4,
    "CUBE_ROOT": 8e-5,
    "CUBE_ROOT_16_BITS": 2e-3,
    "ENCODE": 2.1e-5,
    "ENCODE_8_BITS": 9e-3,
    "ARC_TANGENT": 4e-8,
}


def test_every_polynomial_has_its_fit() -> None:
    polynomials = {name for name, value in vars(constants).items() if isinstance(value, tuple) and len(value) > 3}
    assert polynomials == set(PROBLEMS) == set(STATED)


@pytest.mark.parametrize("name", PROBLEMS)
def test_polynomials_are_as_good_as_a_new_fit(name: str) -> None:
    problem = PROBLEMS[name]
    committed = problem.max_error(getattr(constants, name))
    assert committed <= STATED[name]
    assert committed <= problem.max_error(problem.fit(rounds=60)) * tolerances.FITTED_AGAIN


def test_a_changed_coefficient_is_noticed() -> None:
    problem = PROBLEMS["ARC_TANGENT"]
    changed = np.array(constants.ARC_TANGENT) * [1, 1, 1, 1, 1, 1, 1 + 1e-6, 1]
    assert problem.max_error(changed) > problem.max_error(problem.fit(rounds=60)) * tolerances.FITTED_AGAIN
