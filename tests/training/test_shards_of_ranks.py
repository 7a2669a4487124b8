"""Data sets that each node has at a place of its own."""

import shutil
from pathlib import Path

from hpc_recolor.data import pack
from hpc_recolor.data.shards import PrepareOptions
from hpc_recolor.runtime.progress import silent
from tests.support.workers import shards_of_rank
from tests.training.conftest import Worker


def test_each_rank_reads_the_copy_of_its_node(on_ranks: Worker, photos: Path, tmp_path: Path) -> None:
    """One without room for a copy reads the original."""
    options = PrepareOptions(size=32, val=3, min_side=1, min_colorfulness=0)
    places = [tmp_path / "nodes" / str(rank) for rank in range(2)]
    assert pack.prepare([photos], places[0], options, threads=2, progress=silent)
    shutil.copytree(places[0], places[1])
    assert on_ranks(2, shards_of_rank, str(places[0].parent), str(tmp_path / "runs")) == [*map(str, places)]
