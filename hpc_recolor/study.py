"""`python -m hpc_recolor.study`: all rows of a study, from photographs to one report."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError

app = cli.command("hpc_recolor.study")

# A command of ours and its arguments.
Command = list[str]

VAL, TEST = 100, 300
PHOTO_ARCHIVES = (".tar", ".zip", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Row:
    """A run of the study: the file of its config, and what it learns from: `count` photographs of `source`."""

    file: Path
    config: Config
    source: str
    count: int

    @property
    def run(self) -> Path:
        return self.config.run.folder / self.config.run.name


@app.default
def study(
    *,
    configs: Annotated[Path, Parameter(help="Folder of run configs, one a row.")] = Path("configs/study/small"),
    photos: Annotated[
        Path | None,
        Parameter(
            help="Folder with `general` and `cars` in it, each a folder or a .tar or .zip of photographs; without it "
            "the photographs inside pip packages."
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="The report; by default report.html beside the runs.")] = None,
) -> int:
    """Prepare the photographs, train all rows, measure them, and write the report.

    Each step is a command of its own, which is shown. The same command again goes on where it was stopped. Exit code:
    of the first command that did not end well, or 0.
    """
    from hpc_recolor.data.package_photos import write_scenes  # after the parsing: slow imports

    rows = read_rows(configs)
    results = rows[0].config.run.folder
    scenes = results / "scenes"
    if photos:
        commands = prepare_commands(rows, photos)
        write_scenes(scenes)
    else:
        commands, rows = [], on_package_photos(rows, results)
    for row in rows:
        commands += row_commands(row, scenes if photos else None)
    shown = ["--pictures", scenes.name] if photos else []
    commands.append(["report", *(str(row.run) for row in rows), "--out", str(out or results / "report.html"), *shown])
    return run_all(commands)


def read_rows(configs: Path) -> list[Row]:
    """The configs of a folder, by name, with data.shards=.../SOURCE-COUNT.

    Raises UserError if there are none, if one is named otherwise, or if their runs lie in several folders.
    """
    files = sorted(configs.glob("*.yaml"))
    if not files:
        raise UserError(f"configs={configs}: no .yaml file in it; name a folder with one run config a row")
    rows = [_read_row(file) for file in files]
    folders = sorted({str(row.config.run.folder) for row in rows})
    if len(folders) > 1:
        raise UserError(f"configs={configs}: run.folder differs ({', '.join(folders)}); give all rows the same")
    return rows


def _read_row(file: Path) -> Row:
    config = load_config(file, {})
    shards = config.data.shards
    source, _, count = shards.name.rpartition("-") if shards else ("", "", "")
    if not source or not count.isdigit() or not int(count):
        raise UserError(
            f"{file}: data.shards={shards}: its name tells what to prepare; call it SOURCE-COUNT, as in data/cars-10000"
        )
    return Row(file, config, source, int(count))


def prepare_commands(rows: Sequence[Row], photos: Path) -> list[Command]:
    """What prepares the rows' data sets. Raises UserError if a source is not among the photographs."""
    commands = {}
    for row in rows:
        data = row.config.data
        found = [photos / row.source, *(photos / f"{row.source}{suffix}" for suffix in PHOTO_ARCHIVES)]
        place = next((path for path in found if path.exists()), None)
        if place is None:
            raise UserError(
                f"photos={photos}: neither {row.source} nor {row.source}.tar in it; name a folder that has them"
            )
        shape = ["--size", str(data.size), "--fit", data.fit]
        splits = ["--limit", str(row.count), "--val", str(VAL), "--test", str(TEST)]
        commands[data.shards] = ["prepare", str(place), "--out", str(data.shards), *shape, *splits]
    return list(commands.values())


def on_package_photos(rows: Sequence[Row], results: Path) -> list[Row]:
    """The rows on tiles of the photographs inside pip packages instead, with configs of their own.

    Whatever the source; a row that learns from a half of its source's largest set gets half of the tiles.
    """
    from hpc_recolor.data.package_photos import write_tiles

    tiles = results / "tiles"
    write_tiles(tiles)
    (results / "configs").mkdir(exist_ok=True)
    placed = []
    for row in rows:
        largest = max(other.count for other in rows if other.source == row.source)
        photos = _every(largest // row.count, tiles / "train")
        data = {"shards": None, "photos": photos, "held_out": tiles / "held_out"}
        file, config = results / "configs" / row.file.name, load_config(row.file, {"data": data})
        write_atomically(file, to_yaml(config).encode())
        placed.append(Row(file, config, row.source, row.count))
    return placed


def _every(step: int, folder: Path) -> Path:
    """A folder with links to every step-th photograph of another."""
    if step == 1:
        return folder
    some = folder.with_name(f"{folder.name}-one-in-{step}")
    some.mkdir(exist_ok=True)
    for photo in sorted(folder.iterdir())[::step]:
        link = some / photo.name
        if not link.exists():
            link.symlink_to(Path("..", folder.name, photo.name))
    return some


def row_commands(row: Row, scenes: Path | None) -> list[Command]:
    """What trains a row and measures all checkpoints that the study shows, also on photographs that may be shown."""
    epochs = [str(epoch) for epoch in row.config.train.snapshots]
    measure = ["evaluate", str(row.run), *(["--checkpoint", *epochs] if epochs else [])]
    on_scenes = [[*measure, "--data", str(scenes)]] if scenes else []
    return [["train", "--config", str(row.file)], measure, *on_scenes]


def run_all(commands: Sequence[Command]) -> int:
    """Run commands one after the other, up to one that does not end well. Returns its exit code, or 0."""
    for number, (command, *arguments) in enumerate(commands, 1):
        print(f"[{number}/{len(commands)}] python -m hpc_recolor.{command} {shlex.join(arguments)}", flush=True)
        code = _run([sys.executable, "-m", f"hpc_recolor.{command}", *arguments])
        if code:
            print("stopped here; the same command goes on from it", file=sys.stderr)
            return code
    return 0


def _run(command: Sequence[str]) -> int:
    """Run a command and let it end in its own way: Ctrl-C reaches it from the terminal, SIGTERM from here."""
    with subprocess.Popen(command) as process:
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        }
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(cli.run(app))
