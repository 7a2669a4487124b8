"""What `jobs restart` submits again."""

from pathlib import Path

import pytest

from hpc_recolor.launch import restart
from hpc_recolor.launch.job_folder import JobFolder
from hpc_recolor.launch.profile import JobOptions
from hpc_recolor.launch.submission import Plan
from hpc_recolor.run_folder.folder import record_accumulate
from tests.support.submitted_runs import end, start, submitted

NO_PROCESS = "999999999"


def test_a_run_keeps_the_accumulate_that_it_was_found_to_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job folder has the config that was submitted, with which it did not fit into memory."""
    run = submitted(tmp_path / "run", start(), end("stopped by SIGUSR2", 75), job=NO_PROCESS, cluster="local")
    home = JobFolder.of(run)
    home.config.write_bytes(run.config.read_bytes())
    home.options.write_text(JobOptions(cluster="local").model_dump_json())
    (home.code / "abc").mkdir(parents=True)
    record_accumulate(run, 4)
    plans: list[Plan] = []

    def keep(plan: Plan) -> list[None]:
        plans.append(plan)
        return [None]

    monkeypatch.setattr(restart, "submit", keep)
    restart.resubmit(run)
    assert plans[0].configs[0].train.accumulate == 4
