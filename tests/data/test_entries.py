"""Entries of folders and archives: which are found, that each is read as written, and damaged or malicious archives."""

import bz2
import gzip
import io
import lzma
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_recolor.data import archives, entries, member_names
from hpc_recolor.data.entries import Entry, Listing, list_entries
from hpc_recolor.data.sources import find_photos
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT, paint_photo

NOBODY = 65534
UNPACKERS = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
# A part of a path as a file system takes it: any bytes but "/" and NUL, here not hidden and not too long.
PARTS = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda part: not (b"/" in part or b"\0" in part or part.startswith(b".")))
    .map(os.fsdecode)
)
TREES = st.dictionaries(st.lists(PARTS, max_size=3).map(tuple), st.binary(max_size=100), min_size=1, max_size=8)


def listed(*sources: Path, unpack_in: Path | None = None) -> Listing:
    with tempfile.TemporaryDirectory() as folder:
        return list_entries(sources, unpack_in or Path(folder))


def by_name(listing: Listing) -> dict[str, Entry]:
    found = {entry.name: entry for entry in listing.entries}
    assert len(found) == len(listing.entries)
    assert list(found) == sorted(found, key=os.fsencode)
    return found


def contents(listing: Listing) -> dict[str, bytes]:
    """Contents of readable entries by name. Their sizes must be right."""
    read = {entry.name: entry.read() for entry in listing.entries if not entry.problem}
    assert all(by_name(listing)[name].size_bytes == len(content) for name, content in read.items())
    return read


def problems(listing: Listing) -> dict[str, str]:
    return {entry.name: entry.problem for entry in listing.entries if entry.problem}


def encoded(form: str = "PNG", number: int = 0) -> bytes:
    paint_photo(number).save(file := io.BytesIO(), form)
    return file.getvalue()


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    mode = f"w:{path.suffix[1:]}" if path.suffix[1:] in UNPACKERS else "w"
    with tarfile.open(path, mode, format=form, errors="surrogateescape") as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with two photographs, another file, and hidden files."""
    (tmp_path / "train" / "deep").mkdir(parents=True)
    (tmp_path / "train" / ".thumbnails").mkdir()
    for name in ("a.JPG", "deep/b.png", ".thumbnails/c.jpg", ".d.jpg"):
        (tmp_path / "train" / name).write_bytes(b"content of " + name.encode())
    (tmp_path / "train" / "labels.txt").write_text("BMW, II, MM: no photograph")
    return tmp_path / "train"


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_folder_and_its_archives_give_the_same(tree: Path, tmp_path: Path, suffix: str) -> None:
    members = {f"train/{path.relative_to(tree)}": path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    source = tmp_path / f"anything{suffix}"
    if suffix == ".zip":
        make_zip(source, members)
    elif suffix:
        make_tar(source, members)
    listing = listed(source if suffix else tree)
    assert contents(listing) == {"train/a.JPG": b"content of a.JPG", "train/deep/b.png": b"content of deep/b.png"}
    assert (problems(listing), listing.other_files) == ({}, 1)
    if suffix:
        disguised = source.rename(tmp_path / "photos.data")
        assert contents(listed(disguised)) == contents(listing)


@settings(max_examples=40, derandomize=True)
@given(TREES)
def test_any_tree_of_files_is_read_back_from_folder_and_tar(tree: dict[tuple[str, ...], bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "root")
        expected = {}
        for folders, content in tree.items():
            folder = root.joinpath(*folders)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "photo.jpg").write_bytes(content)
            expected["/".join(["root", *folders, "photo.jpg"])] = content
        assert contents(listed(root)) == expected
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            assert contents(listed(make_tar(Path(place, "photos.tar"), expected, form))) == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_photographs_are_recognized_by_their_first_bytes(tmp_path: Path, form: str, kind: str) -> None:
    members = {"x/photo.data": encoded(form), "x/photo": encoded(form, 1), "x/BM.txt": b"BM" * 40, "x/short": b"\xff"}
    if kind == "folder":
        (tmp_path / "x").mkdir()
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
        listing = listed(tmp_path / "x")
    else:
        listing = listed({"zip": make_zip, "tar": make_tar}[kind](tmp_path / "photos", members))
    assert contents(listing) == {name: members[name] for name in ("x/photo", "x/photo.data")}
    assert listing.other_files == 2


def test_names_that_exist_already_get_a_number_after_the_first_part(tree: Path, tmp_path: Path) -> None:
    members = {"train/a.JPG": b"1", "train~2/a.JPG": b"2", "b.png": b"3"}
    sources = (tree, make_zip(tmp_path / "1.zip", members), make_tar(tmp_path / "2.tar", members), tree)
    listing = listed(*sources)
    inside = b"content of a.JPG"
    numbered = {"train/a.JPG": inside, "train~2/a.JPG": b"1", "train~2~2/a.JPG": b"2", "train~3/a.JPG": b"1"}
    numbered |= {"train~2~3/a.JPG": b"2", "train~4/a.JPG": inside, "b.png": b"3", "b.png~2": b"3"}
    deep = b"content of deep/b.png"
    assert contents(listing) == numbered | {"train/deep/b.png": deep, "train~2/deep/b.png": deep}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_with_the_same_name_are_all_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photos"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for content in (b"1", b"2", b"3"):
                archive.writestr("x/a.jpg", content)
    else:
        with tarfile.open(path, "w") as tar:
            for content in (b"1", b"2", b"3"):
                member = tarfile.TarInfo("x/a.jpg")
                member.size = 1
                tar.addfile(member, io.BytesIO(content))
    assert contents(listed(path)) == {"x/a.jpg": b"1", "x~2/a.jpg": b"2", "x~3/a.jpg": b"3"}


def test_linked_folders_are_walked_once_and_lost_links_are_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.jpg").write_bytes(b"e")
    for link, target in {"up": ".", "linked": "../elsewhere", "again": "../elsewhere", "good.jpg": "a.JPG"}.items():
        (tree / link).symlink_to(target)
    for link, target in {"ring.jpg": "ring.jpg", "lost.jpg": "nowhere", "lost": "nowhere"}.items():
        (tree / link).symlink_to(target)
    listing = listed(tree)
    assert contents(listing).keys() == {"train/a.JPG", "train/again/e.jpg", "train/deep/b.png", "train/good.jpg"}
    found = problems(listing)
    assert found.keys() == {"train/ring.jpg", "train/lost.jpg"}
    assert "symbolic links" in found["train/ring.jpg"] and "No such file" in found["train/lost.jpg"]
    assert listing.other_files == 2
    with pytest.raises(OSError, match="No such file"):
        by_name(listing)["train/lost.jpg"].read()


def test_pipes_sockets_and_devices_are_never_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)  # a socket's path must be short
    os.mkfifo(tree / "pipe.jpg")
    os.mkfifo(tree / "pipe")
    (tree / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    listing = listed(tree)
    assert set(problems(listing)) == {"train/pipe.jpg", "train/null.png", "train/socket.jpg"}
    assert all("no regular file" in problem for problem in problems(listing).values())
    assert listing.other_files == 2
    for entry in listing.entries:
        if entry.problem:
            with pytest.raises(OSError):  # noqa: PT011
                entry.read()
    with pytest.raises(UserError, match=r"SOURCE=.*pipe: .*pipe, socket or device"):
        listed(tree / "pipe")


def test_a_file_that_became_a_pipe_or_vanished_is_an_error_not_a_wait(tree: Path) -> None:
    found = by_name(listed(tree))
    (tree / "a.JPG").unlink()
    os.mkfifo(tree / "a.JPG")
    (tree / "deep" / "b.png").unlink()
    with pytest.raises(OSError, match="no regular file"):
        found["train/a.JPG"].read()
    with pytest.raises(OSError, match="No such file"):
        found["train/deep/b.png"].read()


def test_folders_without_permission_are_entries_with_a_problem() -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from hpc_recolor.data.entries import list_entries\n"
        "from hpc_recolor.runtime.errors import UserError\n"
        "train, unpack_in = Path(sys.argv[1]), Path(sys.argv[2])\n"
        f"if not os.geteuid(): os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
        "for entry in list_entries([train], unpack_in).entries: print(entry.name, entry.problem)\n"
        "try: list_entries([train / 'locked'], unpack_in)\n"
        "except UserError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as place:  # not tmp_path, which is its owner's alone
        os.chmod(place, 0o755)
        modes = {"train/good.jpg": 0o644, "train/locked/x.jpg": 0o644, "train/listed/y.jpg": 0o644, "train/z.jpg": 0}
        for name, mode in modes.items():
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Path(place, name).touch(mode)
        os.chmod(Path(place, "train/locked"), 0)
        os.chmod(Path(place, "train/listed"), 0o444)
        command = [sys.executable, "-c", script, f"{place}/train", place]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        os.chmod(Path(place, "train/locked"), 0o755)
        os.chmod(Path(place, "train/listed"), 0o755)
    assert result.returncode == 0, result.stderr
    *found, refusal = result.stdout.splitlines()
    assert found == [
        "train/good.jpg None",
        "train/listed/y.jpg unreadable: Permission denied",
        "train/locked folder cannot be listed: Permission denied",
        "train/z.jpg None",
    ]
    assert "locked: cannot be read" in refusal and "Permission denied" in refusal


def test_run_folders_and_data_sets_are_not_sources(tree: Path) -> None:
    for folder, files in {
        "run": ("config.yaml", "samples/images-1.png"),
        "set": ("manifest.json", "train-index.npy", "train-00000.jpeg"),
        "out": ("train-00000.jpeg",),
    }.items():
        for file in files:
            (tree / folder / file).parent.mkdir(parents=True, exist_ok=True)
            (tree / folder / file).touch()
    assert contents(listed(tree, unpack_in=tree / "out")).keys() == {"train/a.JPG", "train/deep/b.png"}
    assert find_photos(tree, "key", without=tree / "out") == [tree / "a.JPG", tree / "deep" / "b.png"]


# Names that lead outside of a folder, and their labels.
OUTSIDE = {
    "/tmp/absolute.jpg": "tmp/absolute.jpg",
    "../up.jpg": "up.jpg",
    "x/../../up-again.jpg": "x/up-again.jpg",
    "C:/windows.jpg": "windows.jpg",
}


def test_unsafe_members_of_a_tar_are_named_and_never_opened(tmp_path: Path) -> None:
    kinds = {tarfile.SYMTYPE: "sym", tarfile.LNKTYPE: "hard", tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "char"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("x/good.jpg", *OUTSIDE, "../other.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        for kind, name in kinds.items():
            for suffix in ("jpg", "txt"):
                member = tarfile.TarInfo(f"x/{name}.{suffix}")
                member.type, member.linkname = kind, "/etc/passwd"
                tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    listing = listed(tmp_path / "x.tar", unpack_in=tmp_path)
    assert contents(listing) == dict.fromkeys(("x/good.jpg", *OUTSIDE.values()), b"abc")
    found = problems(listing)
    assert found.keys() == {f"x/{name}.jpg" for name in kinds.values()}
    assert all(problem.startswith("unsafe archive member: ") for problem in found.values())
    assert listing.other_files == 5
    assert sorted(tmp_path.rglob("*")) == before


def test_unsafe_members_of_a_zip_are_named_and_never_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("x/good.jpg", *OUTSIDE, "../other.txt"):
            archive.writestr(name, b"abc")
        link = zipfile.ZipInfo("x/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("x/packed.jpg", b"abc", zipfile.ZIP_BZIP2)
        archive.writestr("x/secret.jpg", b"abc")
        archive.infolist()[-1].flag_bits |= 1
    listing = listed(tmp_path / "x.zip")
    assert contents(listing) == dict.fromkeys(("x/good.jpg", *OUTSIDE.values()), b"abc")
    found = problems(listing)
    assert found.keys() == {"x/link.jpg", "x/packed.jpg", "x/secret.jpg"}
    assert "link" in found["x/link.jpg"] and "encrypted" in found["x/secret.jpg"]
    assert "stored nor deflated" in found["x/packed.jpg"]
    assert listing.other_files == 1


def zip_of_raw_name(path: Path, name: bytes, extra: bytes = b"") -> Path:
    """A zip with one member, whose name is not marked as UTF-8."""
    placeholder = "n" * len(name)
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(placeholder)
        info.extra = extra
        archive.writestr(info, b"abc")
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name))
    return path


@pytest.mark.parametrize(
    ("name", "encoding", "label"),
    [
        ("写真/表示.jpg", "cp932", None),  # 表 ends in the byte of a backslash
        ("ソ.jpg", "cp932", None),
        ("2019年/ポスター.jpg", "cp932", None),
        ("写真\\表.jpg", "cp932", "写真/表.jpg"),
        ("café/Größe.jpg", "utf-8", None),
        ("café/Größe.jpg", "cp437", None),
        ("Köln.jpg", "cp437", None),
        ("2019\\trip\\IMG_1.JPG", "ascii", "2019/trip/IMG_1.JPG"),
        ("C:\\Users\\me\\a.jpg", "ascii", "Users/me/a.jpg"),
        ("..\\..\\up.jpg", "ascii", "up.jpg"),
        ("功.jpg", "big5", "Ñ_.jpg"),  # of unknown encoding; its backslash does not hide it
    ],
)
def test_names_in_a_zip_are_labels_of_photographs_of_any_system(
    tmp_path: Path, name: str, encoding: str, label: str | None
) -> None:
    source = zip_of_raw_name(tmp_path / "x.zip", name.encode(encoding))
    assert contents(listed(source)) == {label or name: b"abc"}


def test_the_name_of_a_zip_member_in_unicode_comes_first(tmp_path: Path) -> None:
    name = b"Gr\x94\xe1e.jpg"
    body = b"\1" + zlib.crc32(name).to_bytes(4, "little") + "写真.jpg".encode()
    extra = struct.pack("<HH", 0x9999, 2) + b"ab" + struct.pack("<HH", 0x7075, len(body)) + body
    assert contents(listed(zip_of_raw_name(tmp_path / "x.zip", name, extra))) == {"写真.jpg": b"abc"}


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
def test_no_label_leads_outside(name: bytes) -> None:
    info = zipfile.ZipInfo(name.decode("cp437"))
    for label in (member_names.zip_label(info), member_names.tar_label(os.fsdecode(name))):
        parts = label.split("/")
        assert label and parts[0] and ".." not in parts


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members_are_left_out(tmp_path: Path, version: str) -> None:
    (tmp_path / "hole.jpg").touch()
    os.truncate(tmp_path / "hole.jpg", 2**20)
    with (tmp_path / "hole.jpg").open("r+b") as file:
        file.write(b"x" * 4096)
    subprocess.run(
        ["tar", "--format=posix", "-S", f"--sparse-version={version}", "-cf", "x.tar", "hole.jpg"],
        cwd=tmp_path,
        check=True,
    )
    assert "sparse" in problems(listed(tmp_path / "x.tar"))["hole.jpg"]


def test_files_beyond_the_limit_are_left_out_and_growing_ones_are_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "MAX_PHOTO_BYTES", 100)
    members = {"x/small.jpg": bytes(100), "x/large.jpg": bytes(101), "x/large.txt": bytes(101)}
    (tree / "large.jpg").write_bytes(bytes(101))
    for source in (make_zip(tmp_path / "x.zip", members), make_tar(tmp_path / "x.tar", members)):
        listing = listed(source)
        assert contents(listing) == {"x/small.jpg": bytes(100)}
        assert problems(listing) == {"x/large.jpg": "too large: more than 100 bytes"}
    listing = listed(tree)
    assert problems(listing) == {"train/large.jpg": "too large: more than 100 bytes"}
    (tree / "a.JPG").write_bytes(bytes(101))
    with pytest.raises(OSError, match="more than 100 bytes"):
        by_name(listing)["train/a.JPG"].read()


def test_a_zip_member_that_inflates_beyond_what_it_declares_takes_no_memory(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"x/bomb.jpg": bytes(2**28 + 12345)})
    declared = (2**28 + 12345).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(declared) == 2
    path.write_bytes(content.replace(declared, (1000).to_bytes(4, "little")))
    script = (
        "import sys, resource; from pathlib import Path; from hpc_recolor.data.entries import list_entries\n"
        "entry, = list_entries([Path(sys.argv[1])], Path(sys.argv[1]).parent).entries\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: entry.read()\n"
        "except OSError as error: print(error)\n"
        "print(entry.size_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, cwd=ROOT)
    error, numbers = result.stdout.splitlines()
    assert "CRC" in error
    size_bytes, grown_kib = map(int, numbers.split())
    assert (size_bytes, grown_kib < 2**14) == (1000, True)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_too_many_members_are_refused(
    tmp_path: Path, make: Callable[[Path, dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    source = make(tmp_path / "photos", {f"{number}.jpg": b"" for number in range(4)})
    with pytest.raises(UserError, match=r"SOURCE=.*photos: .*more than 3 members"):
        listed(source)


def test_a_compressed_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2**21)
    source = make_tar(tmp_path / "x.tar.gz", {"x.jpg": bytes(2**22)})
    with pytest.raises(UserError, match="more than 2097152 bytes unpacked"):
        listed(source, unpack_in=tmp_path)
    assert list(tmp_path.iterdir()) == [source]


def test_compressed_archives_leave_nothing_where_they_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = make_tar(tmp_path / "x.tar.gz", {f"{number}.jpg": bytes([number]) * 999 for number in range(9)})
    listing = listed(source, unpack_in=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    source.unlink()
    (tmp_path / "out").rmdir()
    assert contents(listing) == {f"{number}.jpg": bytes([number]) * 999 for number in range(9)}


def test_a_folder_where_nothing_can_be_unpacked_is_named(tmp_path: Path) -> None:
    source = make_tar(tmp_path / "x.tar.gz", {"x.jpg": bytes(9)})
    (tmp_path / "labels").touch()
    with pytest.raises(UserError, match=r"SOURCE=.*x.tar.gz: .*\(Not a directory: .*labels"):
        listed(source, unpack_in=tmp_path / "labels")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.8])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    members = {f"{number}.jpg": random.Random(number).randbytes(3000) for number in range(20)}
    source = (make_zip if suffix == "zip" else make_tar)(tmp_path / f"photos.{suffix}", members)
    os.truncate(source, int(share * source.stat().st_size))
    with pytest.raises(UserError, match=rf"SOURCE=.*photos.{suffix}: cannot be read .*\(.+\); .*fetch it again"):
        listed(source)


def test_a_tar_that_ends_at_a_member_or_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    members = {f"{number}.jpg": bytes([65 + number]) * 512 for number in range(4)}
    source = make_tar(tmp_path / "photos.tar", members, tarfile.USTAR_FORMAT)
    whole = source.read_bytes()
    damaged = bytearray(whole)
    damaged[2 * 1024 + 148] ^= 0xFF  # the third header's checksum
    for content in (whole[:2048], bytes(damaged), whole + whole):
        source.write_bytes(content)
        with pytest.raises(UserError, match="truncated, or damaged in the middle"):
            listed(source)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_alone_cannot_be_read(tmp_path: Path, compression: int) -> None:
    members = {f"{number}.jpg": random.Random(number).randbytes(3000) for number in range(5)}
    source = make_zip(tmp_path / "photos.zip", members, compression)
    with zipfile.ZipFile(source) as archive:
        offset = archive.getinfo("2.jpg").header_offset
    content = bytearray(source.read_bytes())
    content[offset + 1500] ^= 0xFF
    source.write_bytes(content)
    found = by_name(listed(source))
    assert not any(entry.problem for entry in found.values())
    with pytest.raises(OSError, match="damaged in the archive"):
        found["2.jpg"].read()
    assert all(entry.read() == members[name] for name, entry in found.items() if name != "2.jpg")


def test_a_tar_header_that_leads_back_does_not_loop(tmp_path: Path) -> None:
    source = make_tar(tmp_path / "photos.tar", {"a.jpg": b"a", "b.jpg": b"b"}, tarfile.GNU_FORMAT)
    content = bytearray(source.read_bytes())
    for kind, size in ((b"0", -1024), (b"0", -512), (b"L", -512), (b"x", -1024), (b"x", 2**40), (b"L", 2**40)):
        content[1024 + 124 : 1024 + 136] = (size % 2**96).to_bytes(12, "big") if size < 0 else bytes(12)
        if size > 0:
            content[1024 + 124 : 1024 + 136] = (size | 1 << 95).to_bytes(12, "big")
        content[1024 + 156 : 1024 + 157] = kind
        content[1024 + 148 : 1024 + 156] = b" " * 8
        content[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(content[1024:1536])
        source.write_bytes(content)
        with pytest.raises(UserError, match=r"SOURCE=.*photos.tar: cannot be read"):
            listed(source)


def archives_with_damage() -> Iterator[bytes]:
    members = {
        f"x/{number}.{'jpg' if number % 2 else 'data'}": random.Random(number).randbytes(300) for number in (1, 2)
    }
    members["x/" + "long" * 40 + ".png"] = bytes(2000)
    with tempfile.TemporaryDirectory() as folder:
        for number, make in enumerate((make_zip, make_tar)):
            yield make(Path(folder, str(number)), members).read_bytes()
        yield make_tar(Path(folder, "gnu.tar"), members, tarfile.GNU_FORMAT).read_bytes()
        yield make_tar(Path(folder, "x.tar.gz"), members).read_bytes()


ARCHIVES = list(archives_with_damage())


@settings(max_examples=300, derandomize=True)
@given(
    st.sampled_from(ARCHIVES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12)), max_size=4),
    st.floats(0, 1),
)
def test_damage_of_any_kind_is_a_user_error_or_an_os_error(
    whole: bytes, changes: list[tuple[float, bytes]], share: float
) -> None:
    content = bytearray(whole)
    for place, change in changes:
        start = int(place * len(content))
        content[start : start + len(change)] = change
    if share < 0.5:
        del content[int(2 * share * len(content)) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "archive")
        path.write_bytes(content)
        with suppress(UserError):
            for entry in list_entries([path], Path(folder)).entries:
                with suppress(OSError):
                    assert len(entry.read()) <= entry.size_bytes


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.xz"])
def test_many_threads_read_one_archive(tmp_path: Path, suffix: str) -> None:
    members = {f"x/{number:03}.jpg": random.Random(number).randbytes(2000 + number) for number in range(200)}
    source = (make_zip if suffix == "zip" else make_tar)(tmp_path / f"photos.{suffix}", members)
    found = listed(source).entries * 5
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda entry: entry.read() == members[entry.name], found))
    assert len(read) == 1000 and all(read)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "train/labels.txt", "labels.txt.gz", "empty", "zeros.tar"])
def test_invalid_sources_are_refused_with_reason_and_fix(tree: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.txt.gz").write_bytes(gzip.compress(b"no archive" * 100))
    (tmp_path / "empty").touch()
    (tmp_path / "zeros.tar").write_bytes(bytes(10240))
    expected = {"nowhere": "no such file", "zeros.tar": "no photographs"}.get(name.split(".zip")[0], "cannot be read")
    with pytest.raises(UserError, match=rf"SOURCE=.*{name}: {expected}"):
        listed(tmp_path / name)


def test_only_sources_without_any_photograph_at_all_are_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty folder").mkdir()
    empty = make_zip(tmp_path / "empty.zip", {})
    with pytest.raises(UserError, match=r"SOURCE=.*empty folder, .*empty.zip: no photographs"):
        listed(tmp_path / "empty folder", empty)
    assert len(listed(tmp_path / "empty folder", tree, empty).entries) == 2
