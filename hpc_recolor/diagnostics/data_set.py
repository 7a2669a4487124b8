"""Looks at every photograph or sample that is to be learned from, and says what is wrong with them."""

import hashlib
import io
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hpc_recolor.data import shards
from hpc_recolor.data.entries import Entry, list_entries
from hpc_recolor.data.journal import JOURNAL
from hpc_recolor.data.parallel import Item, Result, decoding_threads, map_in_order
from hpc_recolor.data.photo import SquareFit, UnfitPhotoError, colorfulness, to_square
from hpc_recolor.data.shards import MANIFEST, PrepareOptions, SetManifest, ShardSamples
from hpc_recolor.diagnostics.findings import Finding, first_line
from hpc_recolor.run_folder.files import FileRecord, file_damage
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress

KEY = "DIR"
LIMITS = PrepareOptions()  # what `prepare` leaves out unless told otherwise
BAD_SHARE = 0.2  # with more of them the copy is bad, not a photograph here and there
NAMED = 3  # of those that share a problem; the others are counted
AT_ONCE = 256  # looks that wait to be taken

GO_ON = "give the same prepare command again; it goes on where it was stopped"
PREPARE_AGAIN = "remove the folder and prepare it again"


@dataclass(frozen=True)
class Look:
    """What a look at one photograph or sample found.

    split: "" in a folder; sides: as stored [pixels]; colorfulness, digest (SHA-256): of the prepared pixels.
    """

    name: str
    split: str = ""
    problem: str = ""
    sides: tuple[int, int] = (0, 0)
    colorfulness: float = 0.0
    digest: bytes = b""


def examine(place: Path) -> list[Finding]:
    """Check a data set, or a folder or archive of photographs. Raises UserError if there is no such place."""
    subject = "photographs"
    with decoding_threads() as pool:
        try:
            place.stat()
            if any((place / name).exists() for name in (JOURNAL, "train-index.npy", "train-names.jsonl")):
                subject = "data set"
                return _examine_set(place, pool)
            return _examine_photos(place, pool)
        except FileNotFoundError:
            raise UserError(f"{KEY}={place}: no such file or folder; name a data set, or photographs") from None
        except OSError as error:
            return [Finding(subject, "error", f"{error.filename}: {error.strerror}", "let this user read it")]
        except UserError as error:  # made as "KEY=place: what; fix"
            what, _, fix = str(error).partition(f"={place}: ")[2].partition("; ")
            return [Finding(subject, "error", what, fix)]


def _examine_set(folder: Path, pool: ThreadPoolExecutor) -> list[Finding]:
    def damage(file: tuple[str, FileRecord]) -> str | None:
        return file_damage(folder / file[0], file[1])

    if (folder / JOURNAL).exists() and not (folder / MANIFEST).exists():
        written = max(0, (folder / JOURNAL).read_bytes().count(b"\n") - 1)  # below its header
        return [Finding("data set", "warning", f"unfinished: shards written so far: {written}", GO_ON)]
    damaged = list(filter(None, _map(pool, damage, _listed(folder), f"checking {folder}", "files")))
    if damaged:
        untried = Finding("samples", "note", "not looked at while files are damaged")
        return [*(Finding("files", "error", what, shards.COPY_AGAIN) for what in damaged), untried]
    manifest = shards.read_set(folder, KEY)
    splits = [ShardSamples(folder, split, manifest.options) for split in manifest.splits]
    numbered = [(samples, number) for samples in splits for number in range(len(samples))]
    looks = list(_map(pool, _look_at_sample, numbered, f"looking at {folder}"))
    bad = [look for look in looks if look.problem]
    return [
        Finding("files", "ok", f"{len(manifest.files)} files are what was written (SHA-256)"),
        *_counts(manifest),
        Finding("samples", "error" if bad else "ok", _unreadable(bad, looks), PREPARE_AGAIN),
        _near_gray(looks),
        _duplicates(looks),
    ]


def _examine_photos(place: Path, pool: ThreadPoolExecutor) -> list[Finding]:
    with tempfile.TemporaryDirectory() as unpack_in:
        listing = list_entries([place], Path(unpack_in))
    looks = list(_map(pool, _look_at_photo, listing.entries, f"looking at {place}"))
    bad = [look for look in looks if look.problem]
    if len(bad) > BAD_SHARE * len(looks):
        unreadable = Finding(
            "readable", "error", _unreadable(bad, looks), "so many are no accident: copy them all again"
        )
    else:
        fix = "copy them again or remove them; prepare leaves them out"
        unreadable = Finding("readable", "warning" if bad else "ok", _unreadable(bad, looks), fix)
    found = Finding("photographs", "ok", f"{len(looks)} found, beside {listing.other_files} other files")
    return [found, unreadable, *_sides(looks), _near_gray(looks), _duplicates(looks)]


def _listed(folder: Path) -> list[tuple[str, FileRecord]]:
    """The files that a manifest lists; none if it cannot be read, about which `read_set` has more to say."""
    try:
        return list(SetManifest.model_validate(json.loads((folder / MANIFEST).read_bytes())).files.items())
    except (OSError, ValueError):
        return []


def _look_at_photo(entry: Entry) -> Look:
    if entry.problem:
        return Look(entry.name, problem=entry.problem)
    try:
        return _look(entry.name, "", entry.read(), SquareFit(LIMITS.size, LIMITS.fit))
    except (OSError, MemoryError) as error:
        return Look(entry.name, problem=f"unreadable: {getattr(error, 'strerror', None) or first_line(error)}")


def _look_at_sample(numbered: tuple[ShardSamples, int]) -> Look:
    samples, number = numbered
    name, content, options = samples.name(number), samples.read(number), samples.options
    if samples.kind != "raw":
        return _look(name, samples.split, content.tobytes(), SquareFit(options.size, options.fit))
    sides = (options.size, options.size)
    return Look(name, samples.split, "", sides, colorfulness(content), hashlib.sha256(content.tobytes()).digest())


def _look(name: str, split: str, content: bytes, square: SquareFit) -> Look:
    try:
        pixels = to_square(content, square)
    except UnfitPhotoError as error:
        return Look(name, split, str(error))
    with Image.open(io.BytesIO(content)) as photo:
        sides = photo.size
    return Look(name, split, "", sides, colorfulness(pixels), hashlib.sha256(pixels.tobytes()).digest())


def _map(
    pool: ThreadPoolExecutor, look: Callable[[Item], Result], items: Sequence[Item], doing: str, unit: str = "images"
) -> Iterator[Result]:
    """map_in_order, in view of the user."""
    with show_progress(doing, unit) as progress:
        for number, result in enumerate(map_in_order(pool, look, items, AT_ONCE), start=1):
            progress(number, len(items))
            yield result


def _counts(manifest: SetManifest) -> Iterator[Finding]:
    options, reasons = manifest.options, manifest.left_out_by_reason
    splits = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    yield Finding("data set", "ok", f"{splits}; {options.format} of {options.size} px, {options.fit}")
    what = f"of {manifest.found} found {len(manifest.left_out)} left out, {manifest.beyond_limit} beyond --limit"
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    yield Finding("preparation", "note" if why else "ok", f"{what}: {why}" if why else what, f"see {MANIFEST}")


def _unreadable(bad: Sequence[Look], looks: Sequence[Look]) -> str:
    if not bad:
        return "all can be decoded"
    kinds = Counter(look.problem.partition(":")[0] for look in bad)
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{_share(bad, looks)} cannot be used: {why}; {_some([f'{look.name} ({look.problem})' for look in bad])}"


def _sides(looks: Sequence[Look]) -> Iterator[Finding]:
    good = [look.sides for look in looks if not look.problem]
    if good:
        shorter, longest = [min(sides) for sides in good], max(max(sides) for sides in good)
        small = [side for side in shorter if side < LIMITS.min_side]
        what = (
            f"shorter sides from {min(shorter)} px, median {statistics.median(shorter):.0f}; longest side {longest} px"
        )
        if small:
            what += f"; {_share(small, looks)} below {LIMITS.min_side} px"
        yield Finding("sizes", "note" if small else "ok", what, "prepare leaves small ones out; see --min-side")


def _near_gray(looks: Sequence[Look]) -> Finding:
    gray = [look.name for look in looks if not look.problem and look.colorfulness < LIMITS.min_colorfulness]
    what = f"{_share(gray, looks)} with a colorfulness below {LIMITS.min_colorfulness:g}"
    if not gray:
        return Finding("near-gray", "ok", what)
    fix = f"prepare --min-colorfulness {LIMITS.min_colorfulness:g}, the default, leaves them out"
    much = len(gray) > BAD_SHARE * len(looks)
    return Finding("near-gray", "warning" if much else "note", f"{what}: {_some(gray)}", fix)


def _duplicates(looks: Sequence[Look]) -> Finding:
    """Same pixels: in two splits they spoil what is measured, in one they only count double."""
    first: dict[bytes, Look] = {}
    across, within = [], []
    for look in looks:
        other = look if look.problem else first.setdefault(look.digest, look)
        if other.split != look.split:
            across.append(f"{other.name} in {other.split} is {look.name} in {look.split}")
        elif other is not look:
            within.append(f"{look.name} is {other.name}")
    if across:
        return Finding("duplicates", "error", f"{len(across)} in two splits: {_some(across)}", PREPARE_AGAIN)
    if not within:
        return Finding("duplicates", "ok", "none")
    what = f"{_share(within, looks)}: {_some(within)}"
    if looks[0].split:
        return Finding("duplicates", "warning", what, PREPARE_AGAIN)
    return Finding("duplicates", "note", what, "prepare keeps one of each")


def _share(some: Sequence[object], of: Sequence[object]) -> str:
    return f"{len(some)} of {len(of)} ({100 * len(some) / len(of):.1f} %)"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
