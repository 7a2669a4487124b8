"""Photographs that tests make for themselves, commands as users run them, and one table of tolerances."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from hpc_recolor.runtime.distributed import World, start
from tests.support.commands import Done, run_forked, run_fresh, run_here
from tests.support.fork_server import ForkServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]

# A shell starts background jobs with SIGINT ignored, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Speed is not what is tested, and the machine may be busy.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

# Before anything imports triton: without a GPU its kernels run in its interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

Command = Callable[..., Done]
CommandIn = Callable[[Path], Command]

# What `show_progress` prints every few seconds where there is no terminal.
PROGRESS_LINE = re.compile(r".+: \d+ of \d+, \d+ \S+/s(, \d+ s left)?")

# The smallest run that goes through everything.
TINY = (
    *("--data.size", "32", "--data.held_out_count", "3", "--model.width", "4", "--train.batch_size", "4"),
    *("--train.epochs", "1", "--train.threads", "1", "--train.device", "cpu", "--tracking.log_every_steps", "1"),
)


# A test that needs one of these is slow; tests that are slow for another reason say so with a mark.
SLOW_FIXTURES = {"fork_server", "cluster", "hosts", "browser"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks slow tests. A process of pytest-xdist begins with them."""
    for item in items:
        if SLOW_FIXTURES.intersection(_fixtures(item)):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: (
                not {"cluster", "hosts"}.intersection(_fixtures(item)),
                item.get_closest_marker("slow") is None,
            )
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Decides which tests a process of pytest-xdist runs."""
    from tests.support.scheduling import OneCluster

    return OneCluster(config, log)


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))


def paint_photo(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth colored picture, another one for each number."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:1:height*1j, 0:1:width*1j]  # fmt: skip
    waves = [np.sin(2 * np.pi * (draw.random() * 2 * x + draw.random() * 2 * y + draw.random())) for _ in range(3)]
    return Image.fromarray(np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 15 photographs, some in a subfolder, as PNG and JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "nested" / "deeper").mkdir(parents=True)
    for number in range(15):
        place = folder / "nested" / "deeper" if number % 3 == 0 else folder
        paint_photo(number).save(place / f"photo{number:02d}.{'jpg' if number % 2 else 'png'}")
    return folder


@pytest.fixture
def world() -> World:
    """This process as the only rank."""
    return this_rank()


def this_rank() -> World:
    """As the fixture `world`, for fixtures of longer scope: on one thread, whatever trainings in this process have left
    behind."""
    from tests.support.training_runs import without_plots  # imports DeepSpeed

    without_plots()
    return start("cpu", threads=1)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts processes that need not import torch and the like again."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """One for all tests: two at a time are more than Playwright's synchronous API takes."""
    from tests.support.browsers import chromium  # imports Playwright

    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def command_in(fork_server: ForkServer) -> CommandIn:
    """`command_in(folder)("train", ...)`: `command` in a folder that more than one test uses."""

    def in_folder(folder: Path) -> Command:
        def run(name: str, *arguments: object, ranks: int = 1, fresh: bool = False) -> Done:
            if fresh:
                return run_fresh(folder, f"hpc_recolor.{name}", arguments, ranks)
            return run_forked(fork_server, folder, f"hpc_recolor.{name}", arguments, ranks)

        return run

    return in_folder


@pytest.fixture
def command(tmp_path: Path, command_in: CommandIn) -> Command:
    """`command("train", "--flag", ..., ranks=2)` runs `python -m hpc_recolor.train --flag ...` in an empty folder.

    In a process of its own, forked from one that has imported everything. fresh: in a new interpreter, as users do, on
    several ranks under torchrun; costs ten seconds, so one test a command does it.
    """
    return command_in(tmp_path)


@pytest.fixture
def invoke(tmp_path: Path) -> Command:
    """`invoke("train", "--flag", ...)` runs the command in this process, in an empty folder.

    Returns the exit code and what Python code printed. For commands that create no process group; those need `command`.
    """

    def run(name: str, *arguments: object) -> Done:
        return run_here(tmp_path, f"hpc_recolor.{name}", arguments)

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def changed(flags: tuple[str, ...], **values: object) -> list[str]:
    """The flags with other values: `changed(TINY, **{"train.epochs": 2})`; flags that were not there are added."""
    merged = dict(zip(flags[::2], flags[1::2], strict=True))
    merged |= {f"--{key}": str(value) for key, value in values.items()}
    return [part for pair in merged.items() for part in pair]


def error_line(result: Done) -> str:
    """The error that a refused command prints: one whole line, the last, with nothing before it but progress."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.endswith("\n"), result.stderr
    *others, last = result.stderr.splitlines()
    assert last.startswith("error: "), result.stderr
    assert all(PROGRESS_LINE.fullmatch(line) for line in others), result.stderr
    return last
