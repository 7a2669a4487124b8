"""Real runs, stopped, killed, damaged, renamed and resumed on other ranks, in any order: they end as they should."""

import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.config_file import to_yaml
from hpc_recolor.run_folder.checkpoints import committed, find_damage
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.runtime.distributed import World
from tests.support.commands import environment, run_forked
from tests.support.fork_server import ForkServer
from tests.support.fuzzing import Fuzz
from tests.support.training_runs import differences, run_config, state, train

BATCH, STEPS = 4, 9
IMAGES = BATCH * STEPS


@dataclass(frozen=True)
class Setting:
    """What all examples share. expected: the state of a run that nothing has happened to."""

    photos: Path
    world: World
    server: ForkServer
    folder: Path
    expected: dict[str, Tensor]


class Runs(RuleBasedStateMachine):
    """on_two: whether it was ever trained on two ranks, from where on the same bits are not promised."""

    setting: Setting

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=self.setting.folder))
        self.name, self.on_two = "run0", False

    @rule(step=st.integers(0, STEPS - 1))
    def stop(self, step: int) -> None:
        if step >= self.done:
            train(self.config, self.setting.world, stop_at_step=step)

    @precondition(lambda self: self.done < STEPS)
    @rule(delay_s=st.sampled_from([0.0, 0.02, 0.05]))
    def kill(self, delay_s: float) -> None:
        before = committed(self.run)
        arguments = "--config", self.config_file()
        with self.setting.server.start("hpc_recolor.train", arguments, self.place, environment()) as process:
            while committed(self.run) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        assert find_damage(committed(self.run)[-1]) is None

    @precondition(lambda self: len(self.whole) > 1)
    @rule(data=st.data(), place=st.integers(0, 2**16))
    def damage(self, data: st.DataObject, place: int) -> None:
        newest = committed(self.run)[-1]
        file = newest / data.draw(st.sampled_from(sorted(os.listdir(newest))))
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= 1
        file.write_bytes(content)

    @rule()
    def rename(self) -> None:
        before, self.name = self.run.path, f"run{int(self.name[3:]) + 1}"
        if before.exists():
            before.rename(self.run.path)

    @precondition(lambda self: self.done < STEPS)
    @rule()
    def resume_on_two_ranks(self) -> None:
        self.on_two = True
        arguments = ["--config", self.config_file()]
        done = run_forked(self.setting.server, self.place, "hpc_recolor.train", arguments, ranks=2)
        assert done.returncode == 0, done.stderr
        assert self.done == STEPS

    def teardown(self) -> None:
        trainer = train(self.config, self.setting.world)
        assert trainer.images_seen == IMAGES
        assert self.whole[-1] == committed(self.run)[-1]
        if not self.on_two:
            assert differences(self.setting.expected, state(trainer)) == []
        shutil.rmtree(self.place)

    @property
    def config(self) -> Config:
        return config_of(self.setting.photos, self.place, self.name)

    def config_file(self) -> Path:
        file = self.place / "config.yaml"
        file.write_text(to_yaml(self.config))
        return file

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.place / self.name)

    @property
    def whole(self) -> list[Path]:
        return [path for path in committed(self.run) if find_damage(path) is None]

    @property
    def done(self) -> int:
        """Steps that the newest whole checkpoint holds."""
        return int(self.whole[-1].name.removeprefix("images-")) // BATCH if self.whole else 0


def config_of(photos: Path, folder: Path, name: str) -> Config:
    """A checkpoint after every step."""
    saving = {"every_images": BATCH, "keep": 20}
    return run_config(photos, folder, run={"folder": str(folder), "name": name}, checkpoint=saving)


def test_runs_that_are_stopped_killed_damaged_renamed_and_resumed(
    fuzz: Fuzz, photos: Path, world: World, fork_server: ForkServer, tmp_path: Path
) -> None:
    expected = state(train(config_of(photos, tmp_path, "whole"), world))
    Runs.setting = Setting(photos, world, fork_server, tmp_path, expected)
    fuzz(Runs, examples=2, steps=4)
