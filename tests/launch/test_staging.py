"""A node's own disk: one copy of the data set for all ranks, and nothing that somebody else could have put there."""

import multiprocessing
import os
import resource
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import pytest

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config
from hpc_recolor.data import pack
from hpc_recolor.data.shards import MANIFEST, PrepareOptions, read_set, verify
from hpc_recolor.launch.staging import CACHES, keep_caches, stage
from hpc_recolor.runtime.errors import RankError, UserError
from hpc_recolor.runtime.progress import silent


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> Config:
    """Of a prepared data set."""
    assert pack.prepare([photos], tmp_path / "set", PrepareOptions(size=32, val=3, min_colorfulness=0), 2, silent)
    return load_config(None, {"data": {"shards": str(tmp_path / "set"), "size": 32}})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As a profile names it. Places of caches that a test sets do not stay."""
    for variable in CACHES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    return "$NODE_DISK"


def staged(config: Config, scratch: str) -> Path:
    keep_caches(scratch)
    copy = stage(config, scratch, verbose=True).data.shards
    assert copy
    return copy


def test_ranks_of_a_node_share_one_copy(config: Config, scratch: str, capfd: pytest.CaptureFixture[str]) -> None:
    keep_caches(scratch)
    with multiprocessing.get_context("spawn").Pool(4) as ranks:
        places = set(ranks.starmap(staged, [(config, scratch)] * 4))
    (copy,) = places
    assert config.data.shards and copy != config.data.shards
    assert {file.name: file.read_bytes() for file in copy.iterdir() if file.is_file()} == {
        file.name: file.read_bytes() for file in config.data.shards.iterdir() if file.is_file()
    }
    assert capfd.readouterr().out.count("copying") == 1


def test_a_second_start_takes_the_copy_that_is_there_and_another_set_another_place(
    config: Config, scratch: str
) -> None:
    first = staged(config, scratch)
    (first / "mark").touch()
    assert (staged(config, scratch) / "mark").exists()
    assert config.data.shards
    with (config.data.shards / MANIFEST).open("a") as file:
        file.write("\n")
    assert staged(config, scratch) != first


def test_a_copy_that_was_interrupted_is_made_again(config: Config, scratch: str) -> None:
    copy = staged(config, scratch)
    copy.rename(copy.with_suffix(".copying"))
    (copy.with_suffix(".copying") / MANIFEST).unlink()
    assert (staged(config, scratch) / MANIFEST).exists()
    assert not copy.with_suffix(".copying").exists()


def test_where_there_is_no_room_the_data_stay_where_they_are(
    config: Config, scratch: str, capfd: pytest.CaptureFixture[str]
) -> None:
    keep_caches(scratch)
    assert config.data.shards
    with (config.data.shards / "large").open("wb") as file:
        os.truncate(file.fileno(), 1 << 43)  # a file with a hole, larger than any disk here
    assert stage(config, scratch, verbose=True) == config
    assert "is read in place" in capfd.readouterr().err


def test_without_scratch_or_shards_nothing_is_copied(config: Config, scratch: str) -> None:
    assert stage(config, None, verbose=True) == config
    assert stage(Config(), scratch, verbose=True) == Config()


def test_a_set_that_the_node_cannot_read_is_reported(config: Config, scratch: str) -> None:
    moved = config.model_copy(update={"data": config.data.model_copy(update={"shards": Path("/nowhere")})})
    with pytest.raises(RankError, match=r"data\.shards=/nowhere: cannot read"):
        stage(moved, scratch, verbose=True)


def test_caches_are_the_users_own_and_stay_where_the_user_wants_them(
    scratch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    keep_caches(scratch)
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    own = tmp_path / "node" / f"hpc_recolor-{os.geteuid()}"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(own / "inductor")
    assert own.stat().st_mode & 0o777 == 0o700


def test_a_scratch_folder_that_somebody_else_has_prepared_is_refused(scratch: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "node" / f"hpc_recolor-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="its files are executed"):
        keep_caches(scratch)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_scratch_folder_of_another_user_is_reported_by_the_rank_that_finds_it(scratch: str, tmp_path: Path) -> None:
    """Other nodes may be fine: rank 0 does not know of it, and a plain UserError is printed by rank 0 alone."""
    theirs = tmp_path / "node" / f"hpc_recolor-{os.geteuid()}"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, 65534)
    with pytest.raises(RankError, match="belongs to user 65534"):
        keep_caches(scratch)


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_a_node_does_not_set_makes_no_folder_of_its_name(
    value: str | None, scratch: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the working directory, which all nodes share."""
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.delenv("NODE_DISK") if value is None else monkeypatch.setenv("NODE_DISK", value)
    with suppress(UserError):
        staged(config, scratch)
    assert list((tmp_path / "working").iterdir()) == []


def stage_without_room(config: Config, scratch: str) -> tuple[Path | None, str, list[str]]:
    """In a process that can write no file of more than 1 KB, so that the copy fails half-way: what it reads then, what
    it says, and what it leaves behind."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with redirect_stderr(StringIO()) as stderr:
        copy = stage(config, scratch, verbose=False).data.shards
    folder = Path(os.path.expandvars(scratch)) / f"hpc_recolor-{os.geteuid()}" / "data"
    return copy, stderr.getvalue(), [path.name for path in folder.iterdir() if path.is_dir()]


def test_a_copy_that_fails_half_way_leaves_the_disk_as_it_was(config: Config, scratch: str) -> None:
    keep_caches(scratch)
    with multiprocessing.get_context("spawn").Pool(1) as ranks:
        copy, stderr, left = ranks.apply(stage_without_room, (config, scratch))
    assert copy == config.data.shards
    assert "is read in place" in stderr
    assert "File too large" in stderr
    assert left == []


def test_a_copy_is_read_as_the_data_set_that_it_is(config: Config, scratch: str) -> None:
    copy = staged(config, scratch)
    manifest = read_set(copy, "data.shards")
    assert manifest == read_set(config.data.shards or Path(), "data.shards")
    verify(copy, manifest.files, manifest, "data.shards")
