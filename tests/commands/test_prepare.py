"""Preparing by command: what a data set holds, what is left out, and that stopping it never leaves a broken one.

The command runs in this process unless the promise is about processes: start-up, memory, users, and how they end.
"""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image, ImageOps

from hpc_recolor.data import pack
from tests.conftest import ROOT, contents, error_line, paint_photo
from tests.support import tolerances
from tests.support.bad_photos import (
    DENIED,
    DUPLICATE,
    UNSAFE_KIND,
    VANISHED,
    BadPhotoCase,
    save_turned,
    write_bad_photos,
    write_duplicates,
)
from tests.support.commands import Done, environment, run_here
from tests.support.fork_server import ForkServer, Process
from tests.support.small_shards import SMALL_SHARD_BYTES

Manifest = dict[str, Any]

MODULE = "hpc_recolor.prepare"
WITH_SMALL_SHARDS = "tests.support.small_shards"

# 2 of the 15 photographs to validate on, 2 to test on, 11 to train on.
SMALL = ("--size", "32", "--val", "2", "--test", "2")

# 3/4 MiB per sample and 16 MiB per shard: 2 photographs to validate on, 2 to test on, 21 and 1 to train on.
BIG_COUNT = 26
BIG = ("--size", "512", "--val", "2", "--test", "2")
KILLS = 20
KILLED_FOLDERS = 4

SOMEBODY = 65534  # a user that owns nothing


def prepare(*arguments: object) -> Done:
    """Run the command in this process."""
    return run_here(Path(), MODULE, arguments)


def prepare_fresh(*arguments: object, before: tuple[str, ...] = ()) -> Done:
    """Run the command in a new interpreter; `before`: a command line that starts it, as a user who may not write where
    `make coverage` does."""
    env = {key: value for key, value in os.environ.items() if not (before and key.startswith("COVERAGE"))}
    command = [*before, *command_line(*arguments)]
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=300)


def command_line(*arguments: object, module: str = MODULE) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def prepared(*arguments: object) -> Manifest:
    """Run the command in this process. It must succeed. Returns the manifest of the folder after --out."""
    result = prepare(*arguments)
    assert result.returncode == 0, result.stderr
    return manifest_of(Path(str(arguments[arguments.index("--out") + 1])))


def manifest_of(folder: Path) -> Manifest:
    manifest: Manifest = json.loads((folder / "manifest.json").read_text())
    return manifest


def names_of(folder: Path, split: str = "train") -> list[str]:
    """The names of a split's samples in order; a split without samples has none."""
    path = folder / f"{split}-names.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line] if path.exists() else []


def samples_of(folder: Path, split: str = "train") -> dict[str, bytes]:
    """Name -> the bytes of a sample, by the index."""
    suffix = manifest_of(folder)["options"]["format"]
    index = np.load(folder / f"{split}-index.npy")
    assert index.dtype == np.int64 and index.shape == (len(names_of(folder, split)), 3)
    samples = {}
    for name, (shard, offset, length) in zip(names_of(folder, split), index.tolist(), strict=True):
        with (folder / f"{split}-{shard:05d}.{suffix}").open("rb") as file:
            file.seek(offset)
            samples[name] = file.read(length)
            assert len(samples[name]) == length
    return samples


def pixels_of(folder: Path, split: str = "train") -> dict[str, np.ndarray]:
    """Name -> uint8 (size, size, 3) of a raw data set."""
    size = manifest_of(folder)["options"]["size"]
    samples = samples_of(folder, split)
    return {name: np.frombuffer(sample, np.uint8).reshape(size, size, 3) for name, sample in samples.items()}


def all_names(folder: Path) -> set[str]:
    """The names of all samples; every split has its own."""
    names = [name for split in ("train", "val", "test") for name in names_of(folder, split)]
    assert len(set(names)) == len(names)
    return set(names)


def reasons_of(folder: Path) -> dict[str, str]:
    """Name -> why it was left out; every name once."""
    left_out = manifest_of(folder)["left_out"]
    reasons = {one["name"]: one["reason"] for one in left_out}
    assert len(reasons) == len(left_out)
    return reasons


def assert_counts_add_up(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert manifest["found"] == manifest["kept"] + len(manifest["left_out"]) + manifest["beyond_limit"]
    assert manifest["kept"] == sum(manifest["splits"].values()) == len(all_names(folder))
    for split in ("train", "val", "test"):
        assert manifest["splits"].get(split, 0) == len(names_of(folder, split))


def assert_same_files(folder: Path, expected: Path) -> None:
    """The same names with the same bytes in them."""
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))
    different = [path.name for path in expected.iterdir() if (folder / path.name).read_bytes() != path.read_bytes()]
    assert different == []


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder with its time of change [ns] and its checksum."""
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in folder.iterdir()
    }


def worst_difference(pixels: np.ndarray, photo: Image.Image) -> int:
    """The largest difference of any channel of any pixel [levels of 255]."""
    return int(np.abs(pixels.astype(int) - np.asarray(photo).astype(int)).max())


def opened(path: Path) -> Image.Image:
    """A photograph as it looks: upright, RGB."""
    with Image.open(path) as photo:
        return ImageOps.exif_transpose(photo).convert("RGB")


# --- What a data set holds


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "SHARD_BYTES", SMALL_SHARD_BYTES)
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """An empty folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def small(photos: Path, place: Path) -> Path:
    """The 15 photographs, prepared by four threads of a new interpreter."""
    result = prepare_fresh(photos, "--out", place / "small", *SMALL, "--threads", 4)
    assert result.returncode == 0, result.stderr
    return place / "small"


def test_manifest_describes_the_data_set(small: Path, photos: Path) -> None:
    manifest = manifest_of(small)
    assert manifest["format"] == 1
    assert (manifest["found"], manifest["kept"], manifest["left_out"], manifest["beyond_limit"]) == (15, 15, [], 0)
    assert manifest["splits"] == {"train": 11, "val": 2, "test": 2}
    assert manifest["options"].items() >= {"size": 32, "fit": "stretch", "format": "raw", "val": 2, "seed": 0}.items()
    assert manifest["versions"]
    assert_counts_add_up(small)
    inside = {f"{photos.name}/{path.relative_to(photos).as_posix()}" for path in photos.rglob("*.*g")}
    assert all_names(small) == inside


def test_manifest_has_size_and_checksum_of_every_other_file(small: Path) -> None:
    files = manifest_of(small)["files"]
    assert files.keys() | {"manifest.json"} == set(os.listdir(small))
    for name, record in files.items():
        content = (small / name).read_bytes()
        assert record == {"size_bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def test_raw_shard_is_the_concatenated_samples(small: Path) -> None:
    shard = np.memmap(small / "train-00000.raw", np.uint8, "r").reshape(-1, 32, 32, 3)
    assert len(shard) == 11
    np.testing.assert_array_equal(shard, np.stack(list(pixels_of(small).values())))


@pytest.fixture(scope="module")
def odd_sizes(place: Path) -> dict[str, tuple[Image.Image, int]]:
    """Photographs below `place`/odd sizes: name -> (as it looks, tolerance of its decoded pixels)."""
    folder = place / "odd sizes"
    folder.mkdir()
    for number, suffix in enumerate(("png", "bmp", "tif")):
        paint_photo(20 + number, 32, 32).save(folder / f"exact.{suffix}")
    paint_photo(23, 32, 32).save(folder / "exact.webp", lossless=True)
    for orientation in range(1, 9):
        save_turned(paint_photo(30 + orientation, 32, 32), folder / f"turned{orientation}.png", orientation)
        save_turned(paint_photo(40 + orientation, 64, 32), folder / f"turned{orientation}.jpg", orientation)
    for number, size in enumerate([(64, 32), (32, 64), (128, 64), (77, 53), (400, 300)]):
        paint_photo(50 + number, *size).save(folder / f"{size[0]}x{size[1]}.png")
    paint_photo(60, 400, 300).save(folder / "large.jpg", quality=95)
    return {
        f"{folder.name}/{path.name}": (opened(path), tolerances.DECODE_LEVELS if path.suffix == ".jpg" else 0)
        for path in folder.iterdir()
    }


def test_stretched_samples_are_the_turned_photographs_resized(
    place: Path, odd_sizes: dict[str, tuple[Image.Image, int]]
) -> None:
    prepared(place / "odd sizes", "--out", place / "stretched", "--size", 32)
    samples = pixels_of(place / "stretched")
    assert samples.keys() == odd_sizes.keys()
    for name, (photo, decoded) in odd_sizes.items():
        resized = 0 if photo.size == (32, 32) else tolerances.PREPARED_LEVELS
        stretched = photo.resize((32, 32), Image.Resampling.BILINEAR)
        assert worst_difference(samples[name], stretched) <= decoded + resized, name


def test_cropped_samples_are_the_middle_of_the_photographs(
    place: Path, odd_sizes: dict[str, tuple[Image.Image, int]]
) -> None:
    prepared(place / "odd sizes", "--out", place / "cropped", "--size", 32, "--fit", "crop")
    samples = pixels_of(place / "cropped")
    assert samples.keys() == odd_sizes.keys()
    for name, (photo, decoded) in odd_sizes.items():
        if (photo.width - photo.height) % 2:
            continue  # the middle lies between two pixels
        resized = 0 if min(photo.size) == 32 else tolerances.PREPARED_LEVELS
        cropped = ImageOps.fit(photo, (32, 32), Image.Resampling.BILINEAR)
        assert worst_difference(samples[name], cropped) <= decoded + resized, name


def test_padded_samples_are_whole_photographs_on_one_color(
    place: Path, odd_sizes: dict[str, tuple[Image.Image, int]]
) -> None:
    prepared(place / "odd sizes", "--out", place / "padded", "--size", 64, "--fit", "pad")
    samples = pixels_of(place / "padded")
    assert samples.keys() == odd_sizes.keys()
    colors = set()
    for name, (photo, decoded) in odd_sizes.items():
        scale = 64 / max(photo.size)
        width, height = round(photo.width * scale), round(photo.height * scale)
        if width % 2 or height % 2:
            continue  # the middle lies between two pixels
        left, top = (64 - width) // 2, (64 - height) // 2
        resized = 0 if max(photo.size) == 64 else tolerances.PREPARED_LEVELS
        shrunk = photo.resize((width, height), Image.Resampling.BILINEAR)
        inside = np.zeros((64, 64), bool)
        inside[top : top + height, left : left + width] = True
        found = samples[name][inside].reshape(height, width, 3)
        assert worst_difference(found, shrunk) <= decoded + resized, name
        colors |= {tuple(color) for color in samples[name][~inside].tolist()}
    assert len(colors) == 1


def test_jpeg_data_set_holds_the_same_samples_as_jpeg_files(place: Path, photos: Path) -> None:
    flags = ("--size", 128, "--limit", 8)
    prepared(photos, "--out", place / "raw128", *flags)
    prepared(photos, "--out", place / "jpeg128", *flags, "--format", "jpeg")
    raw, jpeg = pixels_of(place / "raw128"), samples_of(place / "jpeg128")
    assert list(raw) == list(jpeg)
    assert b"".join(jpeg.values()) == (place / "jpeg128" / "train-00000.jpeg").read_bytes()
    for name, pixels in raw.items():
        with Image.open(io.BytesIO(jpeg[name])) as photo:
            assert (photo.format, photo.size, photo.mode) == ("JPEG", (128, 128), "RGB")
            difference = np.abs(np.asarray(photo).astype(int) - pixels)
        assert difference.mean() <= tolerances.PREPARED_JPEG_MEAN, name


# --- The same bytes, and subsets


def test_another_run_with_another_number_of_threads_writes_the_same_bytes(
    small: Path, photos: Path, tmp_path: Path
) -> None:
    prepared(photos, "--out", tmp_path / "again", *SMALL, "--threads", 1)
    assert_same_files(tmp_path / "again", small)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_archive_of_the_folder_gives_the_same_bytes(small: Path, photos: Path, tmp_path: Path, suffix: str) -> None:
    form = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[suffix]
    archive = shutil.make_archive(str(tmp_path / "photos"), form, photos.parent, photos.name)
    prepared(archive, "--out", tmp_path / "set", *SMALL)
    assert_same_files(tmp_path / "set", small)


def test_call_over_a_complete_data_set_says_so_and_changes_nothing(small: Path, photos: Path) -> None:
    before = state_of(small), small.stat().st_mtime_ns
    result = prepare(photos, "--out", small, *SMALL)
    assert result.returncode == 0, result.stderr
    assert re.search("complete|finished|already", result.stdout + result.stderr)
    assert (state_of(small), small.stat().st_mtime_ns) == before


def test_smaller_subset_is_the_beginning_of_the_larger_one(small: Path, photos: Path, tmp_path: Path) -> None:
    five, ten = tmp_path / "five", tmp_path / "ten"
    manifest = prepared(photos, "--out", five, *SMALL, "--limit", 5)
    assert (manifest["kept"], manifest["beyond_limit"]) == (9, 6)
    prepared(photos, "--out", ten, *SMALL, "--limit", 10)
    assert names_of(five) == names_of(ten)[:5] == names_of(small)[:5]
    assert names_of(ten) == names_of(small)[:10]
    assert (ten / "train-00000.raw").read_bytes().startswith((five / "train-00000.raw").read_bytes())
    for split in ("val", "test"):
        assert names_of(five, split) == names_of(ten, split) == names_of(small, split)
        assert_counts_add_up(five)


def test_another_seed_draws_other_splits_in_another_order(small: Path, photos: Path, tmp_path: Path) -> None:
    prepared(photos, "--out", tmp_path / "set", *SMALL, "--seed", 1)
    assert all_names(tmp_path / "set") == all_names(small)
    assert names_of(tmp_path / "set") != names_of(small)
    held_out = [{*names_of(folder, "val"), *names_of(folder, "test")} for folder in (small, tmp_path / "set")]
    assert held_out[0] != held_out[1]


# --- Bad photographs


@pytest.fixture(scope="module")
def bad(place: Path) -> list[BadPhotoCase]:
    return write_bad_photos(place / "bad photos")


@pytest.fixture(scope="module")
def without_limits(place: Path, bad: list[BadPhotoCase]) -> Path:
    """The bad photographs, with all kept that can be."""
    flags = ("--size", 32, "--min-side", 1, "--min-colorfulness", 0)
    prepared(place / "bad photos", "--out", place / "without limits", *flags)
    return place / "without limits"


def test_bad_photographs_are_handled_or_left_out_with_a_reason(place: Path, bad: list[BadPhotoCase]) -> None:
    prepared(place / "bad photos", "--out", place / "with limits", "--size", 32)
    assert_counts_add_up(place / "with limits")
    assert all_names(place / "with limits") == {f"bad photos/{one.name}" for one in bad if one.kept}
    reasons = reasons_of(place / "with limits")
    assert reasons.keys() == {f"bad photos/{one.name}" for one in bad if not one.kept}
    unfitting = {
        one.name: reasons[f"bad photos/{one.name}"]
        for one in bad
        if one.reason and not re.search(one.reason, reasons[f"bad photos/{one.name}"], re.IGNORECASE)
    }
    assert unfitting == {}


def test_small_and_gray_photographs_are_kept_where_limits_allow_them(
    without_limits: Path, bad: list[BadPhotoCase]
) -> None:
    animated = {"gif.jpg", "animated.webp", "animated.png"}
    expected = {f"bad photos/{one.name}" for one in bad if one.decodes and one.name not in animated}
    assert all_names(without_limits) == expected
    assert_counts_add_up(without_limits)


def test_odd_photographs_are_decoded_as_they_look(without_limits: Path, place: Path, bad: list[BadPhotoCase]) -> None:
    samples = pixels_of(without_limits)
    for one in bad:
        if one.kept:
            expected = opened(place / "bad photos" / one.name).resize((32, 32), Image.Resampling.BILINEAR)
            tolerance = tolerances.DECODE_LEVELS + tolerances.PREPARED_LEVELS
            assert worst_difference(samples[f"bad photos/{one.name}"], expected) <= tolerance, one.name


def test_sixteen_bit_gray_keeps_its_shades(without_limits: Path) -> None:
    expected = paint_photo(135, 64, 48).convert("L").convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    found = pixels_of(without_limits)["bad photos/sixteen-bit-gray.png"]
    assert worst_difference(found, expected) <= tolerances.PREPARED_LEVELS


def test_bomb_is_refused_before_it_takes_memory(place: Path, bad: list[BadPhotoCase]) -> None:
    folder = place / "bomb"
    folder.mkdir()
    paint_photo(1).save(folder / "good.png")
    peaks_mib = []
    for name in ("without", "with"):
        if name == "with":
            shutil.copy(place / "bad photos" / "bomb.png", folder)
        # A process in between: memory that a new process shares with its parent counts in its peak.
        measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        measure += "print('KiB:', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        out = place / f"{name} bomb"
        result = prepare_fresh(folder, "--out", out, "--size", 32, before=(sys.executable, "-S", "-E", "-c", measure))
        assert result.returncode == 0, result.stderr
        peaks_mib.append(int(result.stdout.split("KiB:")[1]) / 1024)
    assert list(reasons_of(place / "with bomb")) == ["bomb/bomb.png"]
    assert peaks_mib[1] - peaks_mib[0] < tolerances.REFUSED_PEAK_MIB


def test_duplicates_are_left_out_once_each(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pairs = write_duplicates(photos)
    paint_photo(1).save(photos / "another.png")
    prepared(photos, "--out", tmp_path / "set", "--size", 32)
    reasons = reasons_of(tmp_path / "set")
    assert len(reasons) == len(pairs) == 2
    for pair in pairs:
        ((name, other),) = [(a, b) for a, b in (pair, pair[::-1]) if f"photos/{a}" in reasons]
        assert re.search(DUPLICATE, reasons[f"photos/{name}"], re.IGNORECASE)
        assert f"photos/{other}" in all_names(tmp_path / "set")
    assert_counts_add_up(tmp_path / "set")


def test_pipes_do_not_block_the_command(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    os.mkfifo(tmp_path / "photos" / "pipe.dat")
    paint_photo(1).save(tmp_path / "photos" / "good.png")
    prepared(tmp_path / "photos", "--out", tmp_path / "set", "--size", 32)
    assert all_names(tmp_path / "set") == {"photos/good.png"}
    assert_counts_add_up(tmp_path / "set")


# --- Another user than root


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What stands before a command so that folders' permissions hold for it: nothing, unless the tests run as root.

    Where root's home holds the interpreter, it is laid open in a mount namespace that only that command sees.
    """
    if os.geteuid() != 0:
        return ()
    interpreter = Path(sys.base_prefix)
    closed = [folder for folder in interpreter.parents if not folder.stat().st_mode & stat.S_IXOTH]
    open_up = 'if [ -n "$1" ]; then mount --bind "$2" "$3"; mount -t tmpfs -o mode=755 tmpfs "$1"; mkdir -p "$2"; '
    open_up += 'mount --bind "$3" "$2"; fi; shift 3; '
    become = f'exec setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups -- "$@"'
    shell = ("unshare", "--mount", "sh", "-ec", open_up + become, "sh")
    before = (*shell, str(closed[-1] if closed else ""), str(interpreter), str(tmp_path_factory.mktemp("interpreter")))
    probe = subprocess.run([*before, sys.executable, "-c", "import hpc_recolor"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no other user can run the interpreter here: {probe.stderr.strip()}")
    return before


def test_folders_and_photographs_without_permission_are_left_out_by_name(
    somebody: tuple[str, ...], place: Path
) -> None:
    photos, out = place / "not all mine", place / "of all mine"
    (photos / "locked").mkdir(parents=True)
    (photos / "listed only").mkdir()
    out.mkdir()
    os.chmod(out, 0o777)
    for number, name in enumerate(("good.png", "secret.png", "locked/inside.png", "listed only/inside.png")):
        paint_photo(number).save(photos / name)
    os.chmod(photos / "secret.png", 0o000)
    os.chmod(photos / "locked", 0o000)
    os.chmod(photos / "listed only", 0o444)
    try:
        result = prepare_fresh(photos, "--out", out, "--size", 32, before=somebody)
    finally:
        os.chmod(photos / "locked", 0o755)
        os.chmod(photos / "listed only", 0o755)
    assert result.returncode == 0, result.stderr
    assert all_names(out) == {"not all mine/good.png"}
    reasons = reasons_of(out)
    assert {"not all mine/secret.png", "not all mine/locked"} <= reasons.keys()
    assert any(name.startswith("not all mine/listed only") for name in reasons)
    assert all(re.search(DENIED, reason, re.IGNORECASE) for reason in reasons.values()), reasons
    assert_counts_add_up(out)


def test_target_without_permission_is_refused_by_name(somebody: tuple[str, ...], photos: Path, place: Path) -> None:
    source = place / "readable" / photos.name
    shutil.copytree(photos, source)
    (place / "closed").mkdir(mode=0o755)
    if os.geteuid() != 0:
        os.chmod(place / "closed", 0o555)
    line = error_line(prepare_fresh(source, "--out", place / "closed" / "set", *SMALL, before=somebody))
    assert str(place / "closed") in line
    assert re.search("permission", line, re.IGNORECASE)
    assert contents(place / "closed") == {}


# --- Stopped at any time


@pytest.fixture(scope="module")
def big(place: Path) -> Path:
    """Photographs that become four shards."""
    folder = place / "big"
    folder.mkdir()
    for number in range(BIG_COUNT):
        paint_photo(200 + number).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def whole(big: Path, place: Path) -> Path:
    """All of them prepared without a stop."""
    prepared(big, "--out", place / "whole", *BIG)
    sizes = sorted(path.stat().st_size >> 10 for path in (place / "whole").glob("*.raw"))
    assert sizes == [768, 2 * 768, 2 * 768, 21 * 768]
    return place / "whole"


def held_bytes(folder: Path) -> int:
    """How much a folder holds while files come and go in it; -1 if it is not there."""
    if not folder.is_dir():
        return -1
    held = 0
    for name in os.listdir(folder):
        try:
            held += (folder / name).stat().st_size
        except FileNotFoundError:
            continue
    return held


def signal_at(held: float, number: int, process: "Process | subprocess.Popen[bytes]", out: Path) -> int:
    """Send a process a signal once `out` holds that many bytes. Returns its exit code."""
    while process.poll() is None:
        if held_bytes(out) >= held:
            process.send_signal(number)
            break
        time.sleep(0.001)
    return process.wait(300)


def test_run_killed_anywhere_resumes_to_the_same_bytes(
    fork_server: ForkServer, big: Path, whole: Path, tmp_path: Path
) -> None:
    all_bytes = held_bytes(whole)
    ends = []
    for folder in range(KILLED_FOLDERS):
        out = tmp_path / f"killed{folder}"
        for share in np.linspace(0, 1, KILLS)[folder::KILLED_FOLDERS]:
            with (
                tempfile.TemporaryFile("w+") as stderr,
                fork_server.start(
                    WITH_SMALL_SHARDS, (big, "--out", out, *BIG), ROOT, environment(), stderr=stderr
                ) as process,
            ):
                code = signal_at(share * all_bytes, signal.SIGKILL, process, out)
                stderr.seek(0)
                assert code in (0, -signal.SIGKILL), stderr.read()
            ends.append((code, held_bytes(out)))
        prepared(big, "--out", out, *BIG)
        assert_same_files(out, whole)
        shutil.rmtree(out)
    assert len(ends) == KILLS
    killed_at = [held for code, held in ends if code == -signal.SIGKILL]
    assert len(killed_at) > KILLS / 2
    assert len({held for held in killed_at if 0 < held < all_bytes}) > KILLS / 4


@pytest.fixture(scope="module")
def interrupted(big: Path, whole: Path, place: Path) -> tuple[Path, int, str]:
    """A run that Ctrl-C ended near its end: its folder, its exit code, and its stderr."""
    out = place / "interrupted"
    # Programs in the background of a script ignore Ctrl-C from birth.
    at_first = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryFile("w+") as stderr:
            command = command_line(big, "--out", out, *BIG, module=WITH_SMALL_SHARDS)
            with subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            ) as process:
                code = signal_at(0.9 * held_bytes(whole), signal.SIGINT, process, out)
            stderr.seek(0)
            return out, code, stderr.read()
    finally:
        signal.signal(signal.SIGINT, at_first)


@pytest.fixture
def unfinished(interrupted: tuple[Path, int, str], tmp_path: Path) -> Path:
    """A copy of what the interrupted run left."""
    return Path(shutil.copytree(interrupted[0], tmp_path / "set"))


def test_interrupted_run_says_so_and_resumes_to_the_same_bytes(
    interrupted: tuple[Path, int, str], unfinished: Path, big: Path, whole: Path
) -> None:
    _, code, stderr = interrupted
    assert code == 130, stderr
    assert "Traceback" not in stderr and "interrupted" in stderr
    assert not (unfinished / "manifest.json").exists()
    before = state_of(unfinished)
    prepared(big, "--out", unfinished, *BIG)
    assert_same_files(unfinished, whole)
    assert state_of(unfinished)["val-00000.raw"] == before["val-00000.raw"], "what was done has been done again"


def test_other_options_over_an_unfinished_data_set_are_refused(unfinished: Path, big: Path) -> None:
    before = state_of(unfinished)
    line = error_line(prepare(big, "--out", unfinished, *BIG, "--seed", 1))
    assert "seed" in line and str(unfinished) in line
    assert state_of(unfinished) == before


def test_other_files_in_an_unfinished_data_set_are_not_removed(unfinished: Path, big: Path) -> None:
    (unfinished / "diary.txt").write_text("keep me")
    before = state_of(unfinished)
    line = error_line(prepare(big, "--out", unfinished, *BIG))
    assert str(unfinished) in line
    assert state_of(unfinished) == before


def test_unfinished_data_set_that_lost_parts_does_not_become_a_broken_one(
    unfinished: Path, big: Path, whole: Path
) -> None:
    (unfinished / "test-00000.raw").unlink()
    os.truncate(unfinished / "val-00000.raw", 500_000)
    result = prepare(big, "--out", unfinished, *BIG)
    if result.returncode:
        assert re.search(r"(test|val)-00000\.raw", error_line(result))
        assert not (unfinished / "manifest.json").exists()
    else:
        assert_same_files(unfinished, whole)


def test_unfinished_data_set_whose_finished_shard_was_damaged_is_prepared_again_from_there(
    unfinished: Path, big: Path, whole: Path
) -> None:
    shard = unfinished / "val-00000.raw"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    result = prepare(big, "--out", unfinished, *BIG)
    assert result.returncode == 0
    assert "val-00000.raw differs from what was written (XXH3-128); prepared again from there on" in result.stderr
    assert_same_files(unfinished, whole)


def test_torn_last_line_of_the_journal_does_not_stop_a_run_from_resuming(
    unfinished: Path, big: Path, whole: Path
) -> None:
    progress = unfinished / "progress.jsonl"
    os.truncate(progress, progress.stat().st_size - 10)
    prepared(big, "--out", unfinished, *BIG)
    assert_same_files(unfinished, whole)


def test_photograph_that_vanishes_meanwhile_is_left_out(
    fork_server: ForkServer, big: Path, whole: Path, tmp_path: Path
) -> None:
    last = names_of(whole)[-1]
    photos = Path(shutil.copytree(big, tmp_path / big.name))
    arguments = (photos, "--out", tmp_path / "set", *BIG, "--threads", 1)
    with (
        tempfile.TemporaryFile("w+") as stderr,
        fork_server.start(WITH_SMALL_SHARDS, arguments, ROOT, environment(), stderr=stderr) as process,
    ):
        while held_bytes(tmp_path / "set") <= 0 and process.poll() is None:
            time.sleep(0.001)
        (photos / Path(last).name).unlink()
        code = process.wait(300)
        stderr.seek(0)
        assert code == 0, stderr.read()
    reasons = reasons_of(tmp_path / "set")
    assert list(reasons) == [last]
    assert re.search(VANISHED, reasons[last], re.IGNORECASE)
    assert names_of(tmp_path / "set") == names_of(whole)[:-1]
    assert_counts_add_up(tmp_path / "set")


# --- What is refused


@pytest.fixture
def complete(small: Path, tmp_path: Path) -> Path:
    """A complete data set that a test may spoil."""
    return Path(shutil.copytree(small, tmp_path / "set"))


def test_other_options_over_a_complete_data_set_are_refused_by_name(complete: Path, photos: Path) -> None:
    before = state_of(complete)
    other = ("--size", 64, "--fit", "crop", "--format", "jpeg", "--limit", 5)
    line = error_line(prepare(photos, "--out", complete, *SMALL[2:], *other))
    assert all(key in line for key in ("size", "fit", "format", "limit", str(complete))), line
    rest = line.replace(str(complete), "")
    assert "seed" not in rest and "min_side" not in rest, "what is the same is not named"
    assert state_of(complete) == before


def test_changed_source_over_a_complete_data_set_is_refused(complete: Path, photos: Path, tmp_path: Path) -> None:
    before = state_of(complete)
    source = Path(shutil.copytree(photos, tmp_path / photos.name))
    paint_photo(99).save(source / "new.png")
    line = error_line(prepare(source, "--out", complete, *SMALL))
    assert str(complete) in line
    assert state_of(complete) == before


def test_photograph_that_changed_in_place_is_noticed_at_equal_length(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(6):
        paint_photo(number).save(source / f"{number}.bmp")
    prepared(source, "--out", tmp_path / "set", *SMALL)
    assert "nothing to do" in prepare(source, "--out", tmp_path / "set", *SMALL).stdout
    paint_photo(9).save(source / "2.bmp")
    line = error_line(prepare(source, "--out", tmp_path / "set", *SMALL))
    assert "holds another data set (the photographs found, by name or content)" in line


def test_data_set_from_before_contents_were_hashed_is_complete(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(6):
        paint_photo(number).save(source / f"{number}.bmp")
    prepared(source, "--out", tmp_path / "set", *SMALL)
    manifest = tmp_path / "set" / "manifest.json"
    names = b"".join(b"photos/%d.bmp\0%d\n" % (n, (source / f"{n}.bmp").stat().st_size) for n in range(6))
    old = json.loads(manifest.read_text()) | {"source": hashlib.sha256(names).hexdigest()}
    for name, record in old["files"].items():
        sha256 = hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest()
        old["files"][name] = {"size_bytes": record["size_bytes"], "sha256": sha256}
    manifest.write_text(json.dumps(old))
    assert "nothing to do" in prepare(source, "--out", tmp_path / "set", *SMALL).stdout


def test_folder_with_other_files_is_not_taken_as_data_set(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("keep me")
    before = contents(tmp_path)
    line = error_line(run_here(tmp_path, MODULE, (photos, "--out", "mine", *SMALL)))
    assert "--out=mine" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("source", ["nowhere", "nowhere.zip", "notes", "notes/readme.txt"])
def test_source_that_is_missing_or_holds_no_photographs_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no photograph")
    before = contents(tmp_path)
    line = error_line(run_here(tmp_path, MODULE, (source, "--out", "set")))
    assert f"SOURCE={source}" in line
    assert contents(tmp_path) == before


def test_source_of_which_nothing_is_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.jpg").write_text("no photograph")
    paint_photo(1).convert("L").save(tmp_path / "photos" / "gray.png")
    before = contents(tmp_path)
    line = error_line(prepare(tmp_path / "photos", "--out", tmp_path / "set", "--size", 32))
    assert "photos" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--size", "0"], ["size", "0"]),
        (["--size", "x"], ["size", "x"]),
        (["--fit", "foo"], ["fit", "foo", "stretch"]),
        (["--format", "png"], ["format", "png", "raw", "jpeg"]),
        (["--limit", "0"], ["limit", "0"]),
        (["--val", "-1"], ["val", "-1"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--min-colorfulness", "nan"], ["colorfulness", "nan"]),
        (["--sizes", "32"], ["--sizes"]),
    ],
    ids=" ".join,
)
def test_illegal_values_are_refused(tmp_path: Path, photos: Path, flags: list[str], expected: list[str]) -> None:
    line = error_line(run_here(tmp_path, MODULE, (photos, "--out", "set", *flags)))
    assert all(part in line for part in expected), line
    assert contents(tmp_path) == {}


# --- No space left, and malicious archives


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MiB of its own, read-only."""
    folder = tmp_path / "device"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m,ro", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_and_read_only_devices_are_named_and_the_run_resumes_once_there_is_space(
    device: Path, big: Path, whole: Path
) -> None:
    line = error_line(prepare(big, "--out", device / "set", *BIG))
    assert str(device) in line and re.search("read-only", line, re.IGNORECASE)
    assert contents(device) == {}

    subprocess.run(["mount", "-o", "remount,rw,size=10m", device], check=True)
    line = error_line(prepare(big, "--out", device / "set", *BIG))
    assert str(device / "set") in line and "train-00000.raw" in line
    assert re.search("space|room", line)
    assert not (device / "set" / "manifest.json").exists()
    assert held_bytes(device / "set") > 0

    subprocess.run(["mount", "-o", "remount,size=100m", device], check=True)
    prepared(big, "--out", device / "set", *BIG)
    assert_same_files(device / "set", whole)


def test_nothing_of_an_archive_lands_outside_and_its_links_and_devices_are_left_out(tmp_path: Path) -> None:
    planted = tmp_path / "planted.png"
    photo = {number: io.BytesIO() for number in range(4)}
    for number, file in photo.items():
        paint_photo(number).save(file, "PNG")
    kinds = {
        "evil/symlink.png": (tarfile.SYMTYPE, "/etc/passwd"),
        "evil/link-to-good.png": (tarfile.LNKTYPE, "evil/good.png"),
        "evil/device.png": (tarfile.CHRTYPE, ""),
        "evil/pipe.png": (tarfile.FIFOTYPE, ""),
    }
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for number, name in enumerate(("evil/good.png", str(planted), "../up.png", "evil/../../../up-again.png")):
            member = tarfile.TarInfo(name)
            member.size = len(photo[number].getvalue())
            tar.addfile(member, io.BytesIO(photo[number].getvalue()))
        for name, (kind, target) in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.devmajor, member.devminor = 1, 5  # /dev/zero
            tar.addfile(member)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for number, name in enumerate(("bad/good.png", f"{planted}2.png", "../zip-up.png")):
            paint_photo(10 + number).save(file := io.BytesIO(), "PNG")
            archive.writestr(name, file.getvalue())
        link = zipfile.ZipInfo("bad/symlink.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    before = contents(tmp_path)
    prepared(tmp_path / "evil.tar", tmp_path / "bad.zip", "--out", tmp_path / "set", "--size", 32)
    labels = {str(planted)[1:], "up.png", "evil/up-again.png", f"{planted}2.png"[1:], "zip-up.png"}
    assert all_names(tmp_path / "set") == labels | {"evil/good.png", "bad/good.png"}
    reasons = reasons_of(tmp_path / "set")
    assert reasons.keys() == kinds.keys() | {"bad/symlink.png"}
    assert all(re.search(UNSAFE_KIND, reason, re.IGNORECASE) for reason in reasons.values()), reasons
    assert_counts_add_up(tmp_path / "set")
    after = contents(tmp_path)
    assert {path: held for path, held in after.items() if Path(path).parts[0] != "set"} == before
    assert not any((tmp_path / part).exists() for part in ("planted.png", "planted.png2.png", "../up.png"))
    assert not (ROOT / "up.png").exists()
