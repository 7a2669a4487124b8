"""A published archive -> a verified file; an interrupted download resumes where it stopped."""

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import ProgressCallback, silent

MIB = 2**20
TIMEOUT_S = 60.0
TRIES = 5  # consecutive requests without progress


@dataclass(frozen=True)
class PublishedFile:
    """A file as published: address, size, and MD5 in hexadecimal digits."""

    url: str
    size_bytes: int
    md5: str


# MD5 as in ppdet/utils/download.py of PaddlePaddle/PaddleDetection; size as tech-greedy/singularity's tests of its
# scanner list it in the bucket s3://fast-ai-coco.
COCO = PublishedFile(
    url="http://images.cocodataset.org/zips/train2017.zip",
    size_bytes=19_336_861_798,
    md5="cced6f7f71b7629ddf16f17bbcfab6b2",
)


class _TransferError(Exception):
    """The server or the connection failed; another try may succeed."""


def fetch(
    published: PublishedFile,
    folder: Path,
    progress: ProgressCallback = silent,
    mirror: str | None = None,
    pause_s: float = 5.0,
    verifying: ProgressCallback = silent,
) -> Path:
    """Download a file into a folder, or resume a download, and verify it. A file that exists already is kept.

    mirror: another address of the same file. progress: called with (done, total) of the download [MiB]; verifying: of
    computing the checksum [MiB]. pause_s: between tries.
    Raises UserError if that fails; the partial download stays as NAME.part, unless its checksum is wrong.
    """
    url = mirror or published.url
    if not re.match("https?://", url):
        raise UserError(f"--mirror={url}", "not a web address", "give one that begins with http:// or https://")
    file = folder / published.url.rpartition("/")[2]
    part, tag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.part.tag")
    try:
        if file.exists():
            _check_existing(file, published.size_bytes)
            return file
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, part, tag, published.size_bytes, progress, pause_s)
        actual = _md5(part, verifying)
        tag.unlink(missing_ok=True)
        if actual != published.md5:
            part.unlink()
            raise UserError(
                url,
                f"its MD5 is {actual}, expected {published.md5}; the download was removed",
                "run the same command again, or give another --mirror",
            )
        part.replace(file)
    except OSError as error:
        raise UserError(
            str(error.filename or part),
            f"cannot be written ({error.strerror}); the partial download stays",
            "free space or name another folder, and run the same command again",
        ) from None
    return file


def _check_existing(file: Path, size_bytes: int) -> None:
    found = file.stat().st_size
    if found != size_bytes:
        raise UserError(str(file), f"has {found} bytes, expected {size_bytes}", "remove it to download it again")


def _download(url: str, part: Path, tag: Path, size_bytes: int, progress: ProgressCallback, pause_s: float) -> None:
    """Complete `part`, in as many tries as it takes while each makes progress."""
    if _size(part) > size_bytes:
        part.unlink()
    missing, free = size_bytes - _size(part), shutil.disk_usage(part.parent).free
    if free < missing:
        raise UserError(
            str(part.parent),
            f"{missing} bytes are still to be downloaded, {free} are free",
            "free space or name another folder",
        )
    best, failures = _size(part), 0
    while _size(part) < size_bytes:
        try:
            _resume(url, part, tag, size_bytes, progress)
        except _TransferError as error:
            failures = 0 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures == TRIES:
                raise UserError(
                    url,
                    f"{error}; {_size(part)} of {size_bytes} bytes are downloaded and kept",
                    "run the same command again later, or give another --mirror",
                ) from None
            time.sleep(pause_s)


def _resume(url: str, part: Path, tag: Path, size_bytes: int, progress: ProgressCallback) -> None:
    """One request for the rest of `part`. `tag` holds the server's version of the file that `part` began with."""
    done = _size(part)
    headers = {"Range": f"bytes={done}-"} if done else {}
    if done and tag.exists():
        headers["If-Range"] = tag.read_text()
    with _request(url, headers, part) as response:
        if response.status == http.client.PARTIAL_CONTENT:
            sent = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
            if not sent or int(sent[1]) != done:
                raise _TransferError("the server sends another range than requested")
            total = sent[2]
        else:
            done, total = 0, response.headers["Content-Length"] or "*"
        if total not in (str(size_bytes), "*"):
            raise UserError(url, f"another file, of {total} bytes, expected {size_bytes}", "give another --mirror")
        with part.open("ab" if done else "wb") as file:
            if not done:  # the file is empty now, so it is never resumed under another version's tag
                etag = response.headers["ETag"] or ""
                version = etag if etag.startswith('"') else response.headers["Last-Modified"]
                tag.write_text(version) if version else tag.unlink(missing_ok=True)
            while done < size_bytes:
                chunk = _receive(response, min(MIB, size_bytes - done))
                file.write(chunk)
                if done // MIB < (done := done + len(chunk)) // MIB:
                    progress(done // MIB, size_bytes // MIB)
            file.flush()
            os.fsync(file.fileno())


def _request(url: str, headers: dict[str, str], part: Path) -> Any:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # longer than the server's file: start over
        elif error.code < 500 and error.code not in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS):
            raise UserError(url, f"HTTP {error.code} {error.reason}", "give another --mirror") from None
        raise _TransferError(f"HTTP {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _TransferError(getattr(error, "reason", error)) from None


def _receive(response: Any, limit: int) -> bytes:
    try:
        chunk: bytes = response.read1(limit)  # `read` would lose the bytes before a failure
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(error) from None
    if not chunk:
        raise _TransferError("the connection was closed early")
    return chunk


def _md5(file: Path, progress: ProgressCallback) -> str:
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with file.open("rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        while chunk := stream.read(MIB):
            digest.update(chunk)
            done += len(chunk)
            progress(done // MIB, total // MIB)
    return digest.hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
