"""Decodes every photograph or sample of a training set, and reports what is wrong with them."""

import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpc_recolor.data import shards
from hpc_recolor.data.entries import list_entries
from hpc_recolor.data.journal import JOURNAL
from hpc_recolor.data.parallel import Item, Result, decoding_threads, map_in_order
from hpc_recolor.data.shards import MANIFEST, SetManifest, ShardSamples
from hpc_recolor.diagnostics.findings import Finding
from hpc_recolor.diagnostics.inspection import LIMITS, Inspection, inspect_photo, inspect_sample
from hpc_recolor.run_folder.files import FileRecord, file_damage
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress

KEY = "DIR"
BAD_SHARE = 0.2  # above this share the whole copy is bad, not single photographs
NAMED = 3  # examples per problem; the others are counted
AHEAD = 256  # inspections computed ahead

RESUME = "run the same prepare command again; it resumes where it was stopped"
PREPARE_AGAIN = "remove the folder and prepare it again"


def examine(place: Path) -> list[Finding]:
    """Check a data set, or a folder or archive of photographs. Raises UserError if it does not exist."""
    subject = "photographs"
    with decoding_threads() as pool:
        try:
            place.stat()
            if any((place / name).exists() for name in (JOURNAL, "train-index.npy", "train-names.jsonl")):
                subject = "data set"
                return _examine_set(place, pool)
            return _examine_photos(place, pool)
        except FileNotFoundError:
            raise UserError(f"{KEY}={place}", "no such file or folder", "name a data set, or photographs") from None
        except OSError as error:
            message = f"{error.filename}: {error.strerror}"
            return [Finding(subject, "error", message, fix="let this user read it")]
        except UserError as error:
            return [Finding(subject, "error", error.problem, fix=error.fix)]


def _examine_set(folder: Path, pool: ThreadPoolExecutor) -> list[Finding]:
    def damage(file: tuple[str, FileRecord]) -> str | None:
        return file_damage(folder / file[0], file[1])

    if (folder / JOURNAL).exists() and not (folder / MANIFEST).exists():
        return [_unfinished(folder)]
    damaged = list(filter(None, _map(pool, damage, _listed_files(folder), f"checking {folder}", "files")))
    if damaged:
        return [
            *(Finding("files", "error", one, fix=shards.COPY_AGAIN) for one in damaged),
            Finding("samples", "note", "not checked while files are damaged"),
        ]
    manifest = shards.read_set(folder, KEY)
    splits = [ShardSamples(folder, split, manifest.options) for split in manifest.splits]
    numbered = [(samples, number) for samples in splits for number in range(len(samples))]
    inspections = list(_map(pool, inspect_sample, numbered, f"decoding {folder}"))
    unusable = [one for one in inspections if one.problem]
    return [
        Finding("files", "ok", f"{len(manifest.files)} files are as written"),
        *_counts(manifest),
        Finding("samples", "error" if unusable else "ok", _reasons(unusable, inspections), fix=PREPARE_AGAIN),
        _near_gray(inspections),
        _duplicates(inspections),
    ]


def _examine_photos(place: Path, pool: ThreadPoolExecutor) -> list[Finding]:
    with tempfile.TemporaryDirectory() as unpack_in:
        listing = list_entries([place], Path(unpack_in))
    inspections = list(_map(pool, inspect_photo, listing.entries, f"decoding {place}"))
    found = f"{len(inspections)} found, and {listing.other_files} other files"
    return [
        Finding("photographs", "ok", found),
        _readable(inspections),
        *_sides(inspections),
        _near_gray(inspections),
        _duplicates(inspections),
    ]


def _unfinished(folder: Path) -> Finding:
    written = max(0, (folder / JOURNAL).read_bytes().count(b"\n") - 1)  # without its header
    message = f"unfinished: shards written so far: {written}"
    return Finding("data set", "warning", message, fix=RESUME)


def _listed_files(folder: Path) -> list[tuple[str, FileRecord]]:
    """The files in a manifest; none if it cannot be read, which `read_set` reports in detail."""
    try:
        return list(SetManifest.model_validate(json.loads((folder / MANIFEST).read_bytes())).files.items())
    except (OSError, ValueError):
        return []


def _map(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    doing: str,
    unit: str = "images",
) -> Iterator[Result]:
    """map_in_order with progress on stderr."""
    with show_progress(doing, unit) as progress:
        for number, result in enumerate(map_in_order(pool, function, items, AHEAD), start=1):
            progress(number, len(items))
            yield result


def _counts(manifest: SetManifest) -> Iterator[Finding]:
    options, reasons = manifest.options, manifest.left_out_by_reason
    splits = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    content = f"{splits}; {options.format} of {options.size} px, {options.fit}"
    yield Finding("data set", "ok", content)
    left_out = f"of {manifest.found} found {len(manifest.left_out)} left out, {manifest.beyond_limit} beyond --limit"
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    yield Finding(
        "preparation",
        "note" if why else "ok",
        f"{left_out}: {why}" if why else left_out,
        fix=f"see {MANIFEST}",
    )


def _readable(inspections: Sequence[Inspection]) -> Finding:
    unusable = [one for one in inspections if one.problem]
    message = _reasons(unusable, inspections)
    if len(unusable) > BAD_SHARE * len(inspections):
        fix = "too many failures to be coincidence: copy all of them again"
        return Finding("readable", "error", message, fix=fix)
    return Finding(
        "readable",
        "warning" if unusable else "ok",
        message,
        fix="copy them again or remove them; prepare leaves them out",
    )


def _reasons(unusable: Sequence[Inspection], inspections: Sequence[Inspection]) -> str:
    if not unusable:
        return "all can be decoded"
    kinds = Counter(one.problem.partition(":")[0] for one in unusable)
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    examples = _examples([f"{one.name} ({one.problem})" for one in unusable])
    return f"{_share(unusable, inspections)} cannot be used: {why}; {examples}"


def _sides(inspections: Sequence[Inspection]) -> Iterator[Finding]:
    usable = [one.sides for one in inspections if not one.problem]
    if usable:
        shorter, longest = [min(sides) for sides in usable], max(max(sides) for sides in usable)
        small = [side for side in shorter if side < LIMITS.min_side]
        message = (
            f"shorter sides from {min(shorter)} px, median {statistics.median(shorter):.0f}; longest side {longest} px"
        )
        if small:
            message += f"; {_share(small, inspections)} below {LIMITS.min_side} px"
        yield Finding("sizes", "note" if small else "ok", message, fix="prepare leaves small ones out; see --min-side")


def _near_gray(inspections: Sequence[Inspection]) -> Finding:
    limit = LIMITS.min_colorfulness
    gray = [one.name for one in inspections if not one.problem and one.colorfulness < limit]
    message = f"{_share(gray, inspections)} with a colorfulness below {limit:g}"
    if not gray:
        return Finding("near-gray", "ok", message)
    return Finding(
        "near-gray",
        "warning" if len(gray) > BAD_SHARE * len(inspections) else "note",
        f"{message}: {_examples(gray)}",
        fix=f"prepare --min-colorfulness {limit:g}, the default, leaves them out",
    )


def _duplicates(inspections: Sequence[Inspection]) -> Finding:
    """Same pixels: in two splits they invalidate the evaluation, in one they only count twice."""
    first: dict[bytes, Inspection] = {}
    across, within = [], []
    for one in inspections:
        other = one if one.problem else first.setdefault(one.digest, one)
        if other.split != one.split:
            across.append(f"{other.name} in {other.split} is {one.name} in {one.split}")
        elif other is not one:
            within.append(f"{one.name} is {other.name}")
    if across:
        message = f"{len(across)} in two splits: {_examples(across)}"
        return Finding("duplicates", "error", message, fix=PREPARE_AGAIN)
    if not within:
        return Finding("duplicates", "ok", "none")
    message = f"{_share(within, inspections)}: {_examples(within)}"
    if inspections[0].split:
        return Finding("duplicates", "warning", message, fix=PREPARE_AGAIN)
    return Finding("duplicates", "note", message, fix="prepare keeps one of each")


def _share(some: Sequence[object], of: Sequence[object]) -> str:
    return f"{len(some)} of {len(of)} ({100 * len(some) / len(of):.1f} %)"


def _examples(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
