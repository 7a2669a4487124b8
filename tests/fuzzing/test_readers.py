"""Whatever a file contains, it is read or refused by name: no traceback, no hang, no memory beyond a bound."""

import bz2
import gzip
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hpc_recolor.config_file import load_config, load_recorded
from hpc_recolor.data import pack, shards
from hpc_recolor.data.entries import list_entries
from hpc_recolor.data.journal import JOURNAL, Journal
from hpc_recolor.data.photo import SquareFit, UnfitPhotoError, decode, decode_whole, for_dali, to_square
from hpc_recolor.data.shards import PrepareOptions, ShardSamples, read_set
from hpc_recolor.evaluation.results import chosen_vividness
from hpc_recolor.launch.job_folder import JobFolder, runs_of_sweep
from hpc_recolor.launch.overview import inspect
from hpc_recolor.launch.profile import load_profile
from hpc_recolor.launch.restart import resubmit
from hpc_recolor.models.foreign_weights import read_weights
from hpc_recolor.reporting.runs import read_runs
from hpc_recolor.run_folder import checkpoints
from hpc_recolor.run_folder.export import export_generator, read_export
from hpc_recolor.run_folder.files import record_of
from hpc_recolor.run_folder.folder import RunFolder, open_run, read_config
from hpc_recolor.run_folder.metrics_log import rewind_metrics
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import silent
from hpc_recolor.training.engine.deepspeed_config import deepspeed_config
from tests.conftest import ROOT, paint_photo
from tests.support.bad_photos import save_turned
from tests.support.fuzzing import Fuzz, changed_bytes, changed_tree, read_or_refused
from tests.support.icc import rgb_profile
from tests.support.saves import save
from tests.support.small_runs import add_checkpoint, make_run, write_front
from tests.support.submitted_runs import end, start, submitted

SIDE = 32

# The module of the photographs asks for it, but pytest resets what modules ask for.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a folder."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def as_text(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def changed_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Changed as a tree, as bytes, or as both."""
    trees = changed_tree(json.loads(content)).map(as_text)
    return trees | changed_bytes(content) | trees.flatmap(changed_bytes)


# --- Run folders


def test_manifests_of_checkpoints(fuzz: Fuzz, folder: Path) -> None:
    run = RunFolder(folder)
    path = save(run, 8)
    file, content = path / checkpoints.MANIFEST, (path / checkpoints.MANIFEST).read_bytes()

    @given(changed_json(content), st.booleans())
    def check(changed: bytes, is_hashed: bool) -> None:
        """With a hash that fits, or as written by an earlier version."""
        file.write_bytes(changed)
        (path / checkpoints.MANIFEST_HASH).unlink(missing_ok=True)
        if is_hashed:
            (path / checkpoints.MANIFEST_HASH).write_bytes(checkpoints.manifest_hash(changed))
        with read_or_refused():
            found, _ = checkpoints.newest_intact(run)
            checkpoints.evaluation_weights(found, checkpoints.read_manifest(found))

    fuzz(check, examples=150)


def test_shards_of_checkpoints(fuzz: Fuzz, folder: Path) -> None:
    run = RunFolder(folder)
    path = save(run, 8)
    file = path / checkpoints.shard_file(0, 2)
    content, manifest = file.read_bytes(), checkpoints.read_manifest(path)

    @given(changed_bytes(content))
    def check(changed: bytes) -> None:
        """The hash is a guard against damage; a file whose hash fits is only ever read as tensors."""
        file.write_bytes(changed)
        files = manifest.files | {file.name: record_of(file)}
        with read_or_refused():
            checkpoints.evaluation_weights(path, manifest.model_copy(update={"files": files}))

    fuzz(check, examples=100)


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, metrics, an evaluation and an export."""
    place = tmp_path_factory.mktemp("measured")
    (place / "photos").mkdir()
    for number in range(3):
        paint_photo(number).save(place / "photos" / f"{number}.png")
    run = make_run(place / "run", place / "photos")
    path = add_checkpoint(run, 40)
    write_front(run, "photos", 40, {1.0: 9.0, 1.5: 9.1})
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"kind": kind, "images_seen": 20, "epoch": 2.0, "images_per_s": 4.0}) + "\n"
            for kind in ("start", "train", "held_out", "checkpoint")
        )
    )
    export_generator(open_run(run)[1], path, run / "generator.safetensors")
    return run


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "evaluations/photos/images-40.json"])
def test_run_folders(name: str, fuzz: Fuzz, folder: Path, measured_run: Path) -> None:
    shutil.copytree(measured_run, folder / "run")
    file = folder / "run" / name
    content = file.read_bytes()

    @given(changed_json(content) if name.endswith(".json") else changed_bytes(content))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            read_runs([folder / "run"])
        with read_or_refused():
            chosen_vividness(folder / "run")
        with read_or_refused():
            rewind_metrics(folder / "run" / "metrics.jsonl", 10)
        with read_or_refused():
            open_run(folder / "run")

    fuzz(check, examples=50)


def test_exported_generators(fuzz: Fuzz, folder: Path, measured_run: Path) -> None:
    file = folder / "generator.safetensors"
    content = (measured_run / file.name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    cards = changed_tree(json.loads(header["__metadata__"]["card"])).map(json.dumps)
    headers = changed_tree(header) | cards.map(lambda card: header | {"__metadata__": {"card": card}})
    texts = headers.map(as_text)

    @given(changed_bytes(content) | texts.map(lambda text: len(text).to_bytes(8, "little") + text + data))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            read_export(file)
        with read_or_refused():
            read_weights(file, "weights")

    fuzz(check, examples=100)


# --- Config files

NASTY = (
    "a: &a [x, x]\nb: &b [*a, *a]\n",
    "run: &r {name: *r}\n",
    "? [1, 2]\n: 3\n",
    "train: {lr: 2001-99-99}\n",
    "train: {lr: 0x}\n",
    "data: {size: 1:99:99}\n",
    "<<: [1]\n",
    "run: !!python/object/apply:os.system [exit]\n",
    "run: !!binary '='\n",
    "run: {name: 'x\\0y'}\n",
    f"data: {{size: 0x{'f' * 5000}}}\n",
    "train: {lr: !!bool x}\n",
    "train: {lr: !!timestamp x}\n",
    "train: {lr: !!int ''}\n",
)


def bomb(depth: int) -> str:
    """Aliases of aliases: ten to the power of `depth` values in a few lines."""
    lines = ["a0: &a0 lol"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines) + f"\ntrain: *a{depth - 1}\n"


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    sources = [*NASTY, bomb(3), bomb(9), *(file.read_text() for file in sorted((ROOT / "configs").glob("*.yaml")))]
    content = draw(st.sampled_from(sources)).encode()
    return draw(changed_bytes(content)) if draw(st.integers(0, 5)) else content


def test_config_files(fuzz: Fuzz, folder: Path) -> None:
    file = folder / "config.yaml"

    @given(yaml_files())
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            load_config(file, {})
        with read_or_refused():
            load_recorded(file)
        with read_or_refused():
            load_profile(file)

    fuzz(check, examples=100)


def test_cluster_profiles(fuzz: Fuzz, folder: Path) -> None:
    profiles = [file.read_bytes() for file in sorted((ROOT / "slurm" / "profiles").glob("*.yaml"))]

    @given(st.sampled_from(profiles).flatmap(changed_bytes))
    def check(changed: bytes) -> None:
        (folder / "profile.yaml").write_bytes(changed)
        with read_or_refused():
            load_profile(folder / "profile.yaml")

    fuzz(check, examples=50)


def test_deepspeed_configs(fuzz: Fuzz, folder: Path) -> None:
    file = folder / "deepspeed.json"
    config = load_config(None, {"deepspeed": {"config": str(file)}})
    tree = {"zero_optimization": {"stage": "auto", "overlap_comm": True}, "wall_clock_breakdown": False}

    @given(changed_json(as_text(tree)))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            deepspeed_config(config, ranks=1)

    fuzz(check, examples=100)


# --- Job folders


@pytest.mark.parametrize("name", ["submission.json", "options.json", "config.yaml", "tasks.json", "history.jsonl"])
def test_job_folders(name: str, fuzz: Fuzz, folder: Path) -> None:
    events = start(), end("stopped by SIGUSR2", 75), start(restart=1)
    run = submitted(folder / "run", *events, job="4000000", cluster="local")
    home = JobFolder.of(run)
    home.options.write_text('{"cluster": "local", "nodes": 1, "setup": ["true"]}')
    home.config.write_bytes(run.config.read_bytes())
    tasks = as_text([str(run.path), str(folder / "other")])
    file, content = home.path / name, tasks if name == "tasks.json" else (home.path / name).read_bytes()

    @given(changed_json(content) if name.endswith(".json") else changed_bytes(content))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            inspect([run])
        with read_or_refused():
            runs_of_sweep(home)
        with read_or_refused():
            read_config(home.config, run)
        with pytest.raises(UserError):  # the code that it was submitted with is missing at the latest
            resubmit(run)

    fuzz(check, examples=40)


# --- Data sets


@pytest.fixture
def data_set(folder: Path) -> Path:
    """Twelve samples in shards of five."""
    (folder / "photos").mkdir()
    for number in range(12):
        paint_photo(number, SIDE, SIDE).save(folder / "photos" / f"{number}.png")
    prepare(folder)
    return folder / "set"


def prepare(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(pack, "SHARD_BYTES", 5 * shards.pixel_bytes(SIDE))
        options = PrepareOptions(size=SIDE, val=3, min_colorfulness=0)
        pack.prepare([folder / "photos"], folder / "set", options, threads=1, progress=silent)


def read_all(data_set: Path) -> None:
    manifest = read_set(data_set, "data.shards")
    for split in manifest.splits:
        samples = ShardSamples(data_set, split, manifest.options)
        for number in range(len(samples)):
            samples.read(number).max()
        shards.verify(data_set, [f"{split}-names.jsonl"], manifest, "data.shards")
        assert samples.name(0)


def test_manifests_of_data_sets(fuzz: Fuzz, data_set: Path) -> None:
    file = data_set / shards.MANIFEST
    content = file.read_bytes()

    @given(changed_json(content))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            read_all(data_set)

    fuzz(check, examples=150)


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_indexes_of_shards(fuzz: Fuzz, data_set: Path) -> None:
    file, manifest = data_set / "train-index.npy", data_set / shards.MANIFEST
    content, rows, tree = file.read_bytes(), np.load(file), json.loads(manifest.read_bytes())
    edges = st.sampled_from([-1, 0, 1, 5, 2**31, 2**62, 2**63 - 1, -(2**63)])

    @st.composite
    def indexes(draw: st.DrawFn) -> bytes:
        changed = rows.copy()
        for _ in range(draw(st.integers(1, 3))):
            changed[draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, 2))] = draw(edges)
        kind = draw(st.sampled_from(["int64", "int32", "float64", "object", "bytes"]))
        return draw(changed_bytes(content)) if kind == "bytes" else npy(changed.astype(kind))

    @given(indexes(), st.sampled_from(["raw", "jpeg"]))
    def check(changed: bytes, kind: str) -> None:
        file.write_bytes(changed)
        tree["files"][file.name] = record_of(file).model_dump()
        tree["options"]["format"] = kind
        for name in [name for name in tree["files"] if name.endswith(".raw")]:
            tree["files"][name.replace(".raw", ".jpeg")] = tree["files"][name]
            (data_set / name.replace(".raw", ".jpeg")).write_bytes((data_set / name).read_bytes())
        manifest.write_text(json.dumps(tree))
        with read_or_refused():
            read_all(data_set)

    fuzz(check, examples=150)


def test_journals_of_data_sets(fuzz: Fuzz, data_set: Path) -> None:
    """Of a data set that is not finished."""
    names = [file.name for file in data_set.iterdir()]
    lines = journal_of(data_set)

    @st.composite
    def journals(draw: st.DrawFn) -> bytes:
        changed = list(lines)
        number = draw(st.integers(0, len(lines) - 1))
        changed[number] = draw(changed_tree(lines[number]))
        text = b"".join(as_text(line) + b"\n" for line in changed)
        return draw(changed_bytes(text)) if draw(st.booleans()) else text

    @given(journals())
    def check(changed: bytes) -> None:
        work = data_set.parent / "work"
        shutil.rmtree(work, ignore_errors=True)
        (work / "set").mkdir(parents=True)
        (work / "photos").symlink_to(data_set.parent / "photos")
        for name in names:
            if name.endswith(".raw"):
                shutil.copy(data_set / name, work / "set" / name)
        (work / "set" / JOURNAL).write_bytes(changed)
        with read_or_refused():
            prepare(work)
            read_all(work / "set")

    fuzz(check, examples=60)


def journal_of(data_set: Path) -> list[Any]:
    """The journal as it was before the data set was finished."""
    content: list[Any] = []
    remove = Journal.remove
    with pytest.MonkeyPatch.context() as patch:

        def keep(journal: Journal) -> None:
            content.extend(json.loads(line) for line in (journal.out / JOURNAL).read_bytes().splitlines())
            remove(journal)

        patch.setattr(Journal, "remove", keep)
        shutil.rmtree(data_set)
        prepare(data_set.parent)
    return content


# --- Archives and photographs


def photo_bytes(form: str, number: int = 0, **options: Any) -> bytes:
    content = io.BytesIO()
    paint_photo(number, 24, 20).save(content, form, **options)
    return content.getvalue()


def zip_of(compression: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"photos/{number}.png", photo_bytes("PNG", number))
        archive.comment = b"comment"
    return content.getvalue()


def tar_of(form: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name in ("a.png", "b.png") if form == tarfile.USTAR_FORMAT else ("ü" * 120 + ".png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(photo_bytes("PNG")), 0
            archive.addfile(member, io.BytesIO(photo_bytes("PNG")))
    return content.getvalue()


def test_archives(fuzz: Fuzz, folder: Path) -> None:
    file = folder / "archive"
    tars = [tar_of(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    whole = [*tars, zip_of(zipfile.ZIP_STORED), zip_of(zipfile.ZIP_DEFLATED)]
    packed = [gzip.compress(tars[1], mtime=0), bz2.compress(tars[2])]
    inside = st.sampled_from(tars).flatmap(changed_bytes).map(lambda content: gzip.compress(content, mtime=0))

    @given(st.sampled_from([*whole, *packed]).flatmap(changed_bytes) | inside)
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with read_or_refused():
            for entry in list_entries([file], folder).entries:
                if not entry.problem:
                    read_entry(entry.read)

    fuzz(check, examples=150)


def read_entry(read: Any) -> None:
    with suppress(OSError):  # of this photograph alone
        assert isinstance(read(), bytes)


def photographs(folder: Path) -> list[bytes]:
    """Files of every format, with profile, orientation and several images."""
    save_turned(paint_photo(1, 24, 20), folder / "turned.jpg", 6)
    with_alpha = paint_photo(2, 24, 20)
    with_alpha.putalpha(128)
    with_alpha.save(folder / "alpha.png")
    paint_photo(3, 24, 20).quantize(16).save(folder / "palette.png", transparency=7)
    paint_photo(4, 24, 20).convert("CMYK").save(folder / "cmyk.jpg")
    paint_photo(5, 24, 20).save(folder / "two.mpo", "MPO", save_all=True, append_images=[paint_photo(6, 16, 12)])
    gray = np.asarray(paint_photo(7, 24, 20).convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray).save(folder / "sixteen.tif")
    paint_photo(8, 24, 20).save(folder / "lzw.tif", compression="tiff_lzw")
    files = [file.read_bytes() for file in sorted(folder.iterdir())]
    profile = rgb_profile()
    return [
        *files,
        photo_bytes("JPEG"),
        photo_bytes("JPEG", progressive=True, icc_profile=profile, dpi=(72, 72)),
        photo_bytes("PNG", icc_profile=profile),
        photo_bytes("WEBP"),
        photo_bytes("WEBP", lossless=True, exif=Image.Exif().tobytes()),
        photo_bytes("AVIF"),
        photo_bytes("BMP"),
        photo_bytes("TIFF", icc_profile=profile),
    ]


def test_photographs(fuzz: Fuzz, folder: Path) -> None:
    @given(st.sampled_from(photographs(folder)).flatmap(changed_bytes))
    def check(changed: bytes) -> None:
        with read_or_refused(UnfitPhotoError):
            decode_whole(changed)
        with read_or_refused(UnfitPhotoError):
            to_square(changed, SquareFit(SIDE, "crop"))
        with read_or_refused(UnfitPhotoError):
            decode(for_dali(changed))

    fuzz(check, examples=60)
