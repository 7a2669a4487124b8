"""Downloads from a local server that stalls, drops connections, and sends wrong or changed content."""

import hashlib
import random
import re
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpc_recolor.data import download
from hpc_recolor.data.download import COCO, TRIES, PublishedFile, fetch
from hpc_recolor.runtime.errors import UserError

CONTENT = random.Random(0).randbytes(5 * 2**20 + 123)
OTHER = random.Random(1).randbytes(len(CONTENT))


@dataclass
class Site:
    """What the server serves, how it misbehaves, and the requests it got.

    break_after: bytes of each response, one number per request; None sends all.
    """

    url: str = ""
    content: bytes = CONTENT
    version: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    break_after: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    knows_ranges: bool = True
    says_length: bool = True
    wrong_range: bool = False
    stall: threading.Event | None = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: clients that hang up are expected here."""


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append((self.headers["Range"], self.headers["If-Range"]))
        if site.statuses:
            return self.send_error(site.statuses.pop(0))
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        same = self.headers["If-Range"] in (None, *site.version.values())
        ranged = bool(self.headers["Range"]) and site.knows_ranges and same
        if ranged and start >= len(site.content):
            return self.send_error(416)
        body = site.content[start:] if ranged else site.content
        self.send_response(206 if ranged else 200)
        if ranged:
            begins = start + 1 if site.wrong_range else start
            self.send_header("Content-Range", f"bytes {begins}-{len(site.content) - 1}/{len(site.content)}")
        if site.says_length:
            self.send_header("Content-Length", str(len(body)))
        for key, value in site.version.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: site.break_after.pop(0)] if site.break_after else body)
        if site.stall:
            self.wfile.flush()
            site.stall.wait()
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    server = Server(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}/zips/photos.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    if site.stall:
        site.stall.set()
    server.shutdown()
    thread.join()
    server.server_close()


def published(site: Site, content: bytes = CONTENT) -> PublishedFile:
    return PublishedFile(url=site.url, size_bytes=len(content), md5=hashlib.md5(content).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_once_and_kept(site: Site, tmp_path: Path) -> None:
    downloaded: list[tuple[int, int]] = []
    verified: list[tuple[int, int]] = []
    for _ in range(2):
        file = fetch(
            published(site),
            tmp_path / "new" / "folder",
            lambda *numbers: downloaded.append(numbers),
            pause_s=0,
            verifying=lambda *numbers: verified.append(numbers),
        )
        assert file == tmp_path / "new" / "folder" / "photos.zip"
        assert file.read_bytes() == CONTENT
        assert names(file.parent) == ["photos.zip"]
    assert site.asked == [(None, None)]
    assert downloaded == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert verified == [*downloaded, (5, 5)]


@pytest.mark.parametrize("says_length", [True, False])
def test_dropped_connections_are_resumed(site: Site, tmp_path: Path, says_length: bool) -> None:
    site.break_after, site.says_length = [1000, 0, 2**20, 0, 5], says_length
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    ranges = [None, 1000, 1000, 1000 + 2**20, 1000 + 2**20, 1005 + 2**20]
    assert site.asked == [(start and f"bytes={start}-", start and '"1"') for start in ranges]


def test_a_server_that_only_drops_is_given_up_and_the_next_call_resumes(site: Site, tmp_path: Path) -> None:
    site.break_after = [3000, *[0] * TRIES]
    with pytest.raises(
        UserError,
        match=rf"photos.zip: the connection was closed early; 3000 of {len(CONTENT)} bytes are downloaded and kept",
    ):
        fetch(published(site), tmp_path, pause_s=0)
    assert len(site.asked) == TRIES + 1
    assert names(tmp_path) == ["photos.zip.part", "photos.zip.part.tag"]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked[-1] == ("bytes=3000-", '"1"')
    assert names(tmp_path) == ["photos.zip"]


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        ({"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"ETag": 'W/"1"'}, None),
        ({}, None),
    ],
)
def test_the_same_version_is_requested_if_the_server_identifies_it(
    site: Site, tmp_path: Path, version: dict[str, str], asked: str | None
) -> None:
    site.version, site.break_after = version, [1000]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked == [(None, None), ("bytes=1000-", asked)]


def test_content_that_changed_between_two_calls_is_fetched_from_the_beginning(site: Site, tmp_path: Path) -> None:
    site.content, site.break_after = OTHER, [2**20, *[0] * TRIES]
    with pytest.raises(UserError, match="closed early"):
        fetch(published(site), tmp_path, pause_s=0)
    site.content, site.version, site.break_after = CONTENT, {"ETag": '"2"'}, [500]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked[-2:] == [(f"bytes={2**20}-", '"1"'), ("bytes=500-", '"2"')]


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.knows_ranges, site.break_after = False, [2**20, 1000]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_given_up(site: Site, tmp_path: Path) -> None:
    site.wrong_range, site.break_after = True, [1000]
    with pytest.raises(UserError, match="another range than requested; 1000 of"):
        fetch(published(site), tmp_path, pause_s=0)


def test_a_partial_file_that_is_complete_or_too_long_is_handled(site: Site, tmp_path: Path) -> None:
    (tmp_path / "photos.zip.part").write_bytes(CONTENT)
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked == []
    (tmp_path / "photos.zip").unlink()
    (tmp_path / "photos.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked == [(None, None)]


def test_a_partial_file_longer_than_the_server_s_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "photos.zip.part").write_bytes(bytes(2000))
    site.statuses = [416]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert site.asked == [("bytes=2000-", None), (None, None)]


def test_wrong_bytes_are_removed_and_both_checksums_are_reported(site: Site, tmp_path: Path) -> None:
    site.content = OTHER
    expected, actual = (hashlib.md5(content).hexdigest() for content in (CONTENT, OTHER))
    with pytest.raises(UserError, match=f"its MD5 is {actual}, expected {expected}; the download was removed"):
        fetch(published(site), tmp_path, pause_s=0)
    assert names(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(site: Site, tmp_path: Path) -> None:
    site.content = CONTENT + b"more"
    with pytest.raises(UserError, match=rf"another file, of {len(CONTENT) + 4} bytes, expected {len(CONTENT)}"):
        fetch(published(site), tmp_path, pause_s=0)
    assert names(tmp_path) == []
    (tmp_path / "photos.zip.part").write_bytes(CONTENT[:10])
    with pytest.raises(UserError, match="another file"):
        fetch(published(site), tmp_path, pause_s=0)
    assert (tmp_path / "photos.zip.part").read_bytes() == CONTENT[:10]


def test_more_than_was_published_is_not_written(site: Site, tmp_path: Path) -> None:
    site.content, site.says_length = CONTENT + b"more", False
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT


def test_a_finished_file_of_another_size_is_not_touched(site: Site, tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"photos.zip: has 4 bytes, expected {len(CONTENT)}; remove it"):
        fetch(published(site), tmp_path, pause_s=0)
    assert (tmp_path / "photos.zip").read_bytes() == b"mine"
    assert site.asked == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, TRIES), (503, TRIES), (429, TRIES)])
def test_http_errors_are_reported_and_the_partial_download_stays(
    site: Site, tmp_path: Path, status: int, requests: int
) -> None:
    (tmp_path / "photos.zip.part").write_bytes(CONTENT[:10])
    site.statuses = [status] * 10
    with pytest.raises(UserError, match=rf"photos.zip: HTTP {status} .*--mirror"):
        fetch(published(site), tmp_path, pause_s=0)
    assert len(site.asked) == requests
    assert (tmp_path / "photos.zip.part").read_bytes() == CONTENT[:10]


def test_a_passing_server_error_is_waited_out(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 500]
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT


def test_a_server_that_stalls_times_out(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(download, "TRIES", 1)
    site.break_after, site.stall = [1000, 0, 0], threading.Event()
    with pytest.raises(UserError, match=r"photos.zip: .*timed out; 1000 of"):
        fetch(published(site), tmp_path, pause_s=0)


def test_a_mirror_is_used_instead_of_the_publisher(site: Site, tmp_path: Path) -> None:
    original = replace(published(site), url="http://nowhere.invalid/zips/train.zip")
    assert fetch(original, tmp_path, mirror=site.url, pause_s=0) == tmp_path / "train.zip"


@pytest.mark.parametrize("mirror", ["file:///etc/passwd", "photos.zip", "ftp://example.org/photos.zip"])
def test_mirrors_that_are_not_web_addresses_are_refused(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(UserError, match=f"--mirror={mirror}: not a web address"):
        fetch(COCO, tmp_path, mirror=mirror, pause_s=0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/photos.zip", "http://[broken/photos.zip"])
def test_an_unreachable_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"photos.zip: .+; 0 of 9 bytes are downloaded and kept; .*--mirror"):
        fetch(PublishedFile(url=url.format(port=port), size_bytes=9, md5=""), tmp_path, pause_s=0)


def test_too_little_space_is_reported_before_the_download(site: Site, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"{re.escape(str(tmp_path))}: {2**60} bytes are still to be downloaded, \d+ are free"
    ):
        fetch(PublishedFile(url=site.url, size_bytes=2**60, md5=""), tmp_path, pause_s=0)
    assert site.asked == []


def test_a_full_disk_is_reported_and_the_partial_download_stays(site: Site, tmp_path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"photos.zip.part: cannot be written \(File too large\); .*free space"):
            fetch(published(site), tmp_path, pause_s=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "photos.zip.part").stat().st_size == 3 * 2**20
    assert fetch(published(site), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert len(site.asked) == 2


def test_a_folder_that_cannot_be_made_is_reported(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*: cannot be written \(.+\); .*free space or name another folder"):
        fetch(published(site), tmp_path / "file" / "folder", pause_s=0)
