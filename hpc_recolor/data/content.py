"""Hashes of photographs' contents, kept between commands: one that has not changed since is not read again."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import xxhash

from hpc_recolor.data.entries import Entry
from hpc_recolor.data.parallel import decoding_threads, map_in_order
from hpc_recolor.runtime.progress import ProgressCallback, silent, timed

READERS = 8  # at once: on a file server each open file costs a round trip

# A file is the same as long as these are: device, inode, size, and the times at which its content and its inode
# changed, of which programs can set only the first. In the last place: the photograph's name, as archives have many.
Identity = tuple[int, int, int, int, int, bytes]
COLUMNS = ("device", "inode", "size", "changed", "inode_changed", "name")
CREATE = f"CREATE TABLE IF NOT EXISTS hashes ({', '.join(COLUMNS)}, hash, PRIMARY KEY ({', '.join(COLUMNS)}))"
SELECT = f"SELECT hash FROM hashes WHERE {' AND '.join(f'{column} = ?' for column in COLUMNS)}"
INSERT = f"INSERT OR REPLACE INTO hashes VALUES ({', '.join('?' for _ in (*COLUMNS, 'hash'))})"


def content_hashes(entries: Sequence[Entry], progress: ProgressCallback = silent) -> list[str]:
    """XXH3 with 128 bits of each photograph's content, hex; "" for one that cannot be read.

    Only photographs that are new or changed are read; their hashes are kept in the user's cache folder, where there is
    one. progress: called with (photographs hashed, all that have to be). If that takes long, its cost is printed.
    """
    identities = [_identity(entry) for entry in entries]
    with _store() as store:
        hashes = [_recall(store, identity) for identity in identities]
        unknown = [number for number, one in enumerate(hashes) if not one]
        with timed("hashed", advice="again only those that change") as cost, decoding_threads(READERS) as pool:
            found = map_in_order(pool, _hash, [entries[number] for number in unknown], ahead=4 * READERS)
            for done, (number, one) in enumerate(zip(unknown, found, strict=True), 1):
                hashes[number] = one
                cost.add(entries[number].size_bytes)
                progress(done, len(unknown))
        _keep(store, identities, hashes)
    return hashes


def _hash(entry: Entry) -> str:
    try:
        return "" if entry.problem else xxhash.xxh3_128_hexdigest(entry.read())
    except OSError:
        return ""


def _identity(entry: Entry) -> Identity | None:
    try:
        status = entry.file.stat()
    except OSError:
        return None
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times, os.fsencode(entry.name)


def _recall(store: sqlite3.Connection | None, identity: Identity | None) -> str:
    if store and identity:
        with suppress(sqlite3.Error):  # such as a damaged file
            row = store.execute(SELECT, identity).fetchone()
            return str(row[0]) if row else ""
    return ""


def _keep(store: sqlite3.Connection | None, identities: Sequence[Identity | None], hashes: Sequence[str]) -> None:
    rows = [(*identity, one) for identity, one in zip(identities, hashes, strict=True) if identity and one]
    if store:
        with suppress(sqlite3.Error):  # such as a full disk
            store.executemany(INSERT, rows)
            store.commit()


def _cache_file() -> Path:
    """Per the XDG Base Directory Specification."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "hpc_recolor" / "hashes.sqlite3"


@contextmanager
def _store() -> Iterator[sqlite3.Connection | None]:
    """The table of hashes; None where there is no home, no space, or a file system without locks."""
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=5)
        connection.execute(CREATE)
    except (OSError, RuntimeError, sqlite3.Error):
        yield None
        return
    with closing(connection):
        yield connection
