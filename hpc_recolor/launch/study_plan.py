"""A study: many runs as a sequence of our commands, each in a process of its own on this machine."""

import math
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_recolor.config import Config
from hpc_recolor.config_file import load_config, to_yaml
from hpc_recolor.data.package_photos import count_tiles, write_scenes, write_tiles
from hpc_recolor.run_folder.files import write_atomically
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import shell_command
from hpc_recolor.runtime.packaged import CONFIGS, packaged

# The name of a command of ours, and its arguments.
Command = list[str]

VAL, TEST = 100, 300
FRONT = ("0.6", "1", "1.3", "1.6", "2")  # rows of different colorfulness are compared by their fronts
PHOTO_ARCHIVES = (".tar", ".zip", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class StudyRun:
    """A run of the study: the file of its config, and what it is trained on: `count` photographs of `source`.

    seed: in place of the file's, in a run of its own; None for the file's own.
    """

    file: Path
    config: Config
    source: str
    count: int
    seed: int | None = None

    @property
    def name(self) -> str:
        """Its run.name."""
        return self.config.run.name + ("" if self.seed is None else f"-seed{self.seed}")

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.config.run.folder / self.name


def describe_study(configs: Path, photos: Path | None, seeds: int = 1) -> list[str]:
    """What a study will do, as lines, with the training time that the configs state. Writes nothing.

    Arguments and errors: see `plan_study`.
    """
    runs = read_runs(configs)
    if photos:
        prepare_commands(runs, photos)
    tiles = None if photos else count_tiles()
    width = max(len(run.name) for run in runs)
    lines, minutes = [], 0.0
    for run in runs:
        count = run.count if tiles is None else tiles // thinning(run, runs)
        stated = _stated_minutes(run.file)
        time = "time unknown" if stated is None else f"about {max(1, round(stated * count / run.count))} minutes"
        minutes = minutes + (math.nan if stated is None else stated * count / run.count)
        lines.append(f"  {run.name:<{width}}  {run.config.train.epochs} epochs of {count} photographs, {time}")
    known = not math.isnan(minutes)
    total = f"about {round(minutes * seeds)} minutes on the hardware that the configs name" if known else "unknown"
    of_seeds = f", each with {seeds} seeds" if seeds > 1 else ""
    heading = f"{len(runs)} runs{of_seeds}, into {runs[0].config.run.folder}:"
    return [heading, *lines, f"training: {total}; preparing, measuring and the report come on top"]


def _stated_minutes(file: Path) -> float | None:
    """The training time that a config's `# Hardware:` line states [minutes]."""
    stated = re.search(r"^# Hardware:.*?(\d+) minutes", file.read_text(), re.MULTILINE)
    return float(stated[1]) if stated else None


def thinning(run: StudyRun, runs: Sequence[StudyRun]) -> int:
    """One in how many of the tiles a run learns from: as it does of the photographs of its source."""
    return max(other.count for other in runs if other.source == run.source) // run.count


def plan_study(
    configs: Path, photos: Path | None, out: Path | None, seeds: int = 1, recognition: bool = False
) -> list[Command]:
    """The commands of a study, in order. Writes the photographs that they need from pip packages.

    configs: folder of run configs; photos: folder of sources, None for tiles of the photographs in packages; out: the
    report, None for report.html beside the runs; seeds: runs of each config, all of one seed before the next;
    recognition: measured too. Raises UserError, with nothing written, if configs or photos do not fit.
    """
    runs = read_runs(configs)
    results = runs[0].config.run.folder
    scenes = results / "scenes"
    if photos:
        commands = prepare_commands(runs, photos)
        write_scenes(scenes)
    else:
        commands, runs = [], on_package_photos(runs, results)
    if seeds > 1:
        runs = [replace(run, seed=seed) for seed in range(seeds) for run in runs]
    commands += [training_command(run) for run in runs]
    commands += evaluation_commands(runs, scenes if photos else None, recognition)
    report = ["report", *(str(run.folder) for run in runs), "--out", str(out or results / "report.html")]
    return [*commands, [*report, "--pictures", scenes.name] if photos else report]


def read_runs(configs: Path) -> list[StudyRun]:
    """The configs of a folder, by file name, with data.shards=.../SOURCE-COUNT.

    Raises UserError if there are none, if one has another data.shards, or if their run folders have several parents.
    """
    files = sorted((configs if configs.is_dir() else packaged(CONFIGS) / configs).glob("*.yaml"))
    if not files:
        raise UserError(f"configs={configs}", "no .yaml file in it", "name a folder with one config per run")
    runs = [_read_run(file) for file in files]
    folders = sorted({str(run.config.run.folder) for run in runs})
    if len(folders) > 1:
        raise UserError(f"configs={configs}", f"run.folder differs ({', '.join(folders)})", "use the same for all runs")
    return runs


def _read_run(file: Path) -> StudyRun:
    config = load_config(file, {})
    shards = config.data.shards
    source, _, count = shards.name.rpartition("-") if shards else ("", "", "")
    if not source or not count.isdigit() or not int(count):
        problem = f"data.shards={shards} does not say what to prepare"
        raise UserError(str(file), problem, "call it SOURCE-COUNT, as in data/cars-10000")
    return StudyRun(file=file, config=config, source=source, count=int(count))


def prepare_commands(runs: Sequence[StudyRun], photos: Path) -> list[Command]:
    """The commands that prepare the runs' data sets. Raises UserError if a source is not among the photographs."""
    commands = {}
    for run in runs:
        data = run.config.data
        candidates = [photos / run.source, *(photos / f"{run.source}{suffix}" for suffix in PHOTO_ARCHIVES)]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            problem = f"neither {run.source} nor {run.source}.tar in it"
            raise UserError(f"photos={photos}", problem, "name a folder that contains one of them")
        shape = ["--size", str(data.size), "--fit", data.fit]
        splits = ["--limit", str(run.count), "--val", str(VAL), "--test", str(TEST)]
        commands[data.shards] = ["prepare", str(path), "--out", str(data.shards), *shape, *splits]
    return list(commands.values())


def on_package_photos(runs: Sequence[StudyRun], results: Path) -> list[StudyRun]:
    """The same runs on tiles of the photographs inside pip packages, with configs of their own in results/configs.

    All sources become the same tiles. A run with half of its source's largest count is trained on half of the tiles.
    """
    tiles = results / "tiles"
    write_tiles(tiles)
    (results / "configs").mkdir(exist_ok=True)
    on_tiles = []
    for run in runs:
        photos = _every(thinning(run, runs), tiles / "train")
        data = {"shards": None, "photos": photos, "held_out": tiles / "held_out"}
        file, config = results / "configs" / run.file.name, load_config(run.file, {"data": data})
        write_atomically(file, to_yaml(config).encode())
        on_tiles.append(StudyRun(file=file, config=config, source=run.source, count=run.count))
    return on_tiles


def _every(step: int, folder: Path) -> Path:
    """A folder with links to every step-th photograph of another."""
    if step == 1:
        return folder
    thinned = folder.with_name(f"{folder.name}-one-in-{step}")
    thinned.mkdir(exist_ok=True)
    for photo in sorted(folder.iterdir())[::step]:
        link = thinned / photo.name
        if not link.exists():
            link.symlink_to(Path("..", folder.name, photo.name))
    return thinned


def training_command(run: StudyRun) -> Command:
    """The command that trains a run."""
    seed = [] if run.seed is None else ["--run.name", run.name, "--run.seed", str(run.seed)]
    return ["train", "--config", str(run.file), *seed]


def evaluation_commands(runs: Sequence[StudyRun], scenes: Path | None, recognition: bool = False) -> list[Command]:
    """The commands that evaluate the snapshots of runs, on `scenes` too, whose images may be published.

    Runs with the same snapshots are one command, which measures the gray copy of their photographs once.
    """
    commands: list[Command] = []
    for snapshots in dict.fromkeys(run.config.train.snapshots for run in runs):
        folders = [str(run.folder) for run in runs if run.config.train.snapshots == snapshots]
        evaluate = ["evaluate", *folders, "--vividness", *FRONT]
        evaluate += ["--checkpoint", *(str(epoch) for epoch in snapshots)] if snapshots else []
        evaluate += ["--recognition"] if recognition else []
        commands += [evaluate, *([[*evaluate, "--data", str(scenes)]] if scenes else [])]
    return commands


def run_commands(commands: Sequence[Command]) -> int:
    """Run and print commands one after the other, until one fails. Returns its exit code, or 0."""
    for number, (command, *arguments) in enumerate(commands, 1):
        line = shell_command("python", "-m", f"hpc_recolor.{command}", *arguments)
        print(f"[{number}/{len(commands)}] {line}", flush=True)
        code = _run([sys.executable, "-m", f"hpc_recolor.{command}", *arguments])
        if code:
            print("stopped here; the same command resumes from it", file=sys.stderr)
            return code
    return 0


def _run(command: Sequence[str]) -> int:
    """Run a command and wait for its own end: Ctrl-C reaches it from the terminal, SIGTERM is passed on."""
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
