"""`python -m hpc_recolor.prepare`: photographs -> shards, once before training."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import ValidationError

from hpc_recolor import cli
from hpc_recolor.config import FitName
from hpc_recolor.config_file import explain
from hpc_recolor.data.shards import MANIFEST, PrepareOptions, SetManifest, ShardFormat
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.progress import show_progress

app = cli.command("prepare")

DEFAULTS = PrepareOptions()


@app.default
def prepare(
    *sources: Annotated[
        Path,
        Parameter(help="Photographs: folders (nested too), .zip or .tar files, COCO or cars as published."),
    ],
    out: Annotated[Path, Parameter(help="Folder for the data set.")],
    size: Annotated[int, Parameter(help="Side that photographs are resized to [pixels, 32 to 4096].")] = DEFAULTS.size,
    fit: Annotated[
        FitName,
        Parameter(help="How a photograph becomes a square: stretched, cropped at the center, or padded with black."),
    ] = DEFAULTS.fit,
    format: Annotated[
        ShardFormat, Parameter(help="raw: fastest, size * size * 3 bytes per sample; jpeg: about a fifth of that.")
    ] = DEFAULTS.format,
    limit: Annotated[int | None, Parameter(help="Samples to train on, at most; default: all [samples].")] = None,
    val: Annotated[int, Parameter(help="Samples held out for validation [samples].")] = DEFAULTS.val,
    test: Annotated[int, Parameter(help="Samples held out for the final test [samples].")] = DEFAULTS.test,
    seed: Annotated[int, Parameter(help="With the names, decides the order and the splits.")] = DEFAULTS.seed,
    min_side: Annotated[
        int, Parameter(name="--min-side", help="Photographs with a shorter side are left out [pixels].")
    ] = DEFAULTS.min_side,
    min_colorfulness: Annotated[
        float,
        Parameter(
            name="--min-colorfulness",
            help="Less colorful ones are left out as near-gray [levels, Hasler and Suesstrunk 2003; 0 keeps all].",
        ),
    ] = DEFAULTS.min_colorfulness,
    threads: Annotated[int | None, Parameter(help="Photographs decoded at once; by default one per core.")] = None,
    download: Annotated[
        Literal["coco"] | None,
        Parameter(help="Fetch COCO train2017 (18 GiB) into OUT's parent folder, and prepare it."),
    ] = None,
    mirror: Annotated[str | None, Parameter(help="Another address of the file, for --download.")] = None,
) -> None:
    """Decode, check and resize photographs, and write them to shards that training streams from.

    The same command resumes where it was stopped, or reports that the data set is complete.
    """
    try:
        options = PrepareOptions(
            size=size,
            fit=fit,
            format=format,
            limit=limit,
            val=val,
            test=test,
            seed=seed,
            min_side=min_side,
            min_colorfulness=min_colorfulness,
        )
    except ValidationError as error:
        raise explain(error, "command line") from None
    if threads is not None and threads < 1:
        raise UserError(f"--threads={threads}", "less than 1", "use 1 or more")
    if bool(sources) == bool(download):
        raise UserError(
            "SOURCES and --download",
            "both are given" if sources else "neither is given",
            "name photographs (a folder, .zip or .tar), or use --download coco",
        )
    _prepare(sources, out, options, threads or len(os.sched_getaffinity(0)), bool(download), mirror)


def _prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, threads: int, download: bool, mirror: str | None
) -> None:
    from hpc_recolor.data import pack

    if download and not pack.is_prepared(out, options):  # once prepared, the archive may be deleted
        sources = (_download(out.absolute().parent, mirror),)
    elif download:
        return _print_complete(out)
    with show_progress("hashing photographs") as hashing, show_progress(f"preparing {out}") as progress:
        manifest = pack.prepare(sources, out, options, threads, progress, hashing)
    if manifest is None:
        return _print_complete(out)
    _print_summary(manifest, out)


def _download(folder: Path, mirror: str | None) -> Path:
    from hpc_recolor.data.download import COCO, fetch

    with show_progress(f"downloading {COCO.url}", "MiB") as downloading, show_progress("verifying", "MiB") as verifying:
        return fetch(COCO, folder, downloading, mirror, verifying=verifying)


def _print_complete(out: Path) -> None:
    print(f"{out} is complete; nothing to do")


def _print_summary(manifest: SetManifest, out: Path) -> None:
    splits = ", ".join(f"{split} {samples}" for split, samples in manifest.splits.items())
    size_mib = sum(file.size_bytes for file in manifest.files.values()) / 2**20
    print(f"{out}: {manifest.kept} samples of {manifest.options.size} px ({splits}), {size_mib:.0f} MiB")
    print(
        f"found {manifest.found} photographs: kept {manifest.kept}, left out {len(manifest.left_out)}, beyond --limit "
        f"{manifest.beyond_limit}"
    )
    for reason, count in sorted(manifest.left_out_by_reason.items(), key=lambda item: -item[1])[:10]:
        print(f"  {count:6}  {reason}")
    if manifest.left_out:
        print(f"all are listed in {out / MANIFEST}")


if __name__ == "__main__":
    sys.exit(cli.run(app))
