"""One rank in the test's own process, and workers on several."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.commands import run_forked
from tests.support.fork_server import ForkServer

Worker = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Worker:
    """`on_ranks(2, worker, ...)` calls worker(...), from tests.support.workers, on two real ranks over gloo.

    Returns what each rank returned, in order of rank.
    """

    def run(ranks: int, worker: Callable[..., Any], *arguments: Any) -> list[Any]:
        out = tmp_path_factory.mktemp(worker.__name__)
        call = [worker.__name__, json.dumps(arguments), out]
        done = run_forked(fork_server, ROOT, "tests.support.workers", call, ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]

    return run
