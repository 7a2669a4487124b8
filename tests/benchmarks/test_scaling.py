"""The model of a step and its communication, on paper and on ranks."""

import re

import pytest

from benchmarks.scaling import (
    BATCHES,
    EXPECTED,
    NETWORKS,
    NOW,
    STEPS,
    Network,
    nodes_table,
    scaling_table,
    step_table,
    weak_scaling,
)
from tests.conftest import ROOT
from tests.support.commands import run_forked
from tests.support.fork_server import ForkServer

PAGE = (ROOT / "docs" / "scaling.md").read_text()


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    for table in (step_table(), scaling_table(), nodes_table()):
        assert "\n".join(table) in PAGE


def test_every_change_makes_a_step_no_slower() -> None:
    for batch in BATCHES:
        times = [step.step_s(batch, EXPECTED) for step in STEPS]
        assert times == sorted(times, reverse=True)


def test_the_more_is_hidden_and_the_larger_a_step_the_better_it_scales() -> None:
    for network in NETWORKS:
        for compiled in (False, True):
            shares = [weak_scaling(NOW.step_s(batch, EXPECTED), network, compiled) for batch in BATCHES]
            assert shares == sorted(shares)
        assert weak_scaling(0.02, network, compiled=False) > weak_scaling(0.02, network, compiled=True)


def test_two_ranks_send_each_byte_once() -> None:
    assert Network("two", 2, bandwidth=1e9, latency_s=0.0).all_reduce_s(1e9) == pytest.approx(1.0)


@pytest.mark.slow
def test_a_step_on_ranks_is_shown_beside_its_parts(fork_server: ForkServer) -> None:
    small = ("--model.width", 2, "--train.batch_size", 4, "--data.size", 32, "--train.threads", 1)
    done = run_forked(fork_server, ROOT, "benchmarks.scaling", (*small, "--train.device", "cpu"), ranks=2)
    assert done.returncode == 0, done.stderr
    parts, prediction = done.stdout.splitlines()
    assert parts.startswith("2 ranks, width 2, batch 4, medians of 15 rounds: computation alone ")
    assert re.fullmatch(r"a step is predicted to take \d+ to \d+ ms, by how much is hidden; it took \d+ ms", prediction)
