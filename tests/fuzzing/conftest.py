"""How long to look for faults: a minute in the ordinary tests, with the same examples each time; else as asked for."""

import pytest

from tests.support.fuzzing import Fuzz, first_seed_now


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-minutes", type=float, default=0, help="Look for faults for that long, with new examples.")
    parser.addoption("--fuzz-seed", type=int, default=0, help="The first seed, to see a failure again [random].")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """`fuzz(check, examples=100)` runs a hypothesis check, or a state machine, on examples of fixed seeds; with
    --fuzz-minutes for this test's share of that time."""
    minutes = float(request.config.getoption("--fuzz-minutes", default=0))
    if not minutes:
        return Fuzz(budget_s=0, first_seed=0)
    fuzzed = [item for item in request.session.items if "fuzz" in getattr(item, "fixturenames", ())]
    first_seed = int(request.config.getoption("--fuzz-seed")) or first_seed_now()
    return Fuzz(budget_s=60 * minutes / len(fuzzed), first_seed=first_seed)
