"""`benchmarks.heartbeats` counts what a beat sends and reads."""

import pytest

from benchmarks import heartbeats


def test_an_observer_reads_all_ranks_and_others_those_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "RANKS", (16, 64))
    _, _, *lines = heartbeats.count_table()
    rows = [line.split(" | ") for line in lines]
    assert [row[2] for row in rows] == ["2"] * 4
    of_16, last_of_16, of_64, last_of_64 = (float(row[4]) for row in rows)
    assert of_64 == pytest.approx(4 * of_16, rel=0.02)
    assert last_of_64 == pytest.approx(last_of_16, rel=0.02)
    assert last_of_64 < of_16
