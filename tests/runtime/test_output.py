"""Output that cannot be written."""

from pathlib import Path

from tests.conftest import TINY
from tests.support.commands import environment
from tests.support.fork_server import ForkServer


def test_a_run_whose_log_cannot_be_written_trains_and_saves(
    fork_server: ForkServer, photos: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        arguments = ("--data.photos", photos, *TINY)
        with fork_server.start("hpc_recolor.train", arguments, tmp_path, environment(), full, full) as process:
            assert process.wait() == 0
    assert list(tmp_path.glob("runs/train/checkpoints/images-*"))
