"""Prepared data sets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_recolor.data import pack
from hpc_recolor.data.shards import PrepareOptions, ShardFormat
from hpc_recolor.runtime.progress import silent
from tests.conftest import paint_photo

SIZE = 32
PHOTOS = 15

Prepare = Callable[[ShardFormat], Path]


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of lossless photographs that are already squares of SIZE."""
    folder = tmp_path_factory.mktemp("painted")
    for number in range(PHOTOS):
        paint_photo(number, SIZE, SIZE).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def prepared(painted: Path, tmp_path: Path) -> Prepare:
    """`prepared("raw")`: a data set of those photographs, 3 of them in val, as its own copy for each test."""

    def prepare(shard_format: ShardFormat) -> Path:
        options = PrepareOptions(size=SIZE, val=3, format=shard_format, min_colorfulness=0)
        assert pack.prepare([painted], tmp_path / "set", options, threads=2, progress=silent)
        return tmp_path / "set"

    return prepare
