"""Images that ranks of a machine share: one copy, the same samples, and nothing that is left behind."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from hpc_recolor.data.host_cache import make_file, map_file
from tests.conftest import ROOT
from tests.support import workers
from tests.support.prepared_sets import Prepare
from tests.training.conftest import Worker

TOKEN = b"token"
MAKER = """
import os, sys
from hpc_recolor.data.host_cache import make_file, map_file
file = make_file(1000, b"token")
map_file(f"/proc/{os.getpid()}/fd/{file}", 1000, b"token")[:] = 7
print(f"/proc/{os.getpid()}/fd/{file}", flush=True)
sys.stdin.read()
"""


def test_ranks_of_a_machine_read_the_same_samples_from_one_copy(prepared: Prepare, on_ranks: Worker) -> None:
    ranks = on_ranks(2, workers.cached_batches, str(prepared("raw")), False)
    assert [rank["equal"] for rank in ranks] == [True, True]
    assert ranks[0]["inodes"] == ranks[1]["inodes"]
    assert len(ranks[0]["inodes"]) == 1
    assert [rank["loaded"] for rank in ranks] == [6, 6]  # each its part
    assert [rank["printed"] for rank in ranks] == ["", ""]


def test_ranks_that_cannot_share_say_why_and_keep_copies_of_their_own(prepared: Prepare, on_ranks: Worker) -> None:
    ranks = on_ranks(2, workers.cached_batches, str(prepared("raw")), True)
    assert [rank["equal"] for rank in ranks] == [True, True]
    assert [rank["inodes"] for rank in ranks] == [[], []]
    assert [rank["loaded"] for rank in ranks] == [12, 12]
    printed, nothing = (rank["printed"] for rank in ranks)
    assert printed == (
        "data.cache=host: ranks of one machine cannot share the images (Permission denied), so each keeps all of them, "
        "0.0 GiB; run them as one user in one container, or use data.cache=none\n"
    )
    assert nothing == ""


def test_memory_outlives_its_maker_in_those_that_map_it_and_nothing_else() -> None:
    """Killed, it removes nothing; but there is no name by which anything could be left."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert maker.stdout
    path = maker.stdout.readline().strip()
    memory = map_file(path, 1000, TOKEN)
    maker.kill()
    maker.communicate()
    assert (memory == 7).all()
    with pytest.raises(FileNotFoundError):
        map_file(path, 1000, TOKEN)


@pytest.fixture
def small_files() -> Iterator[None]:
    """A file of this process may have 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_memory_that_is_refused_is_noticed_before_it_is_written() -> None:
    with pytest.raises(OSError, match="File too large"):
        make_file(1001, TOKEN)


def test_all_that_is_written_by_one_mapping_is_read_by_another() -> None:
    file = make_file(64, TOKEN)
    one, other = (map_file(f"/proc/self/fd/{file}", 64, TOKEN) for _ in range(2))
    one[:] = np.arange(64)
    assert other.tolist() == list(range(64))


@pytest.mark.parametrize(
    ("size_bytes", "token", "problem"),
    [(65, TOKEN, "greater than file size"), (64, b"other", "another process's file")],
)
def test_a_file_of_another_size_or_token_is_not_mapped(size_bytes: int, token: bytes, problem: str) -> None:
    file = make_file(64, TOKEN)
    with pytest.raises(ValueError, match=problem):
        map_file(f"/proc/self/fd/{file}", size_bytes, token)
    os.close(file)
