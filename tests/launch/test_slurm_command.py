"""Errors of SLURM's commands, on one line with their fix."""

from pathlib import Path

import pytest

from hpc_recolor.launch import slurm_command, slurm_query
from hpc_recolor.runtime.errors import UserError


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid qos specification\n",
            "Batch job submission failed: Invalid qos specification (you may not use that --qos); choose one that",
        ),
        ("scancel: error: Kill job error on job id 9: Invalid job id specified", "the job has ended or never existed"),
        ("slurm_load_partitions: Unable to contact slurm controller (connect failure)", "slurmctld does not respond"),
        ("sbatch: error: one\nsbatch: error: one\nsbatch: fatal: two\n", "one; two"),
        ("", "no reason given"),
    ],
)
def test_an_error_of_slurm_is_one_line_with_the_fix_where_it_is_known(output: str, message: str) -> None:
    line = str(slurm_command.slurm_error(output))
    assert message in line
    assert "error: " not in line
    assert "\n" not in line and not line.rstrip().endswith(";")


def test_a_command_that_is_missing_or_does_not_respond_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="SLURM: sleep did not respond within 0 s"):
        slurm_command.run_command(["sleep", "60"], timeout_s=0.1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"SLURM: not found on this machine .sinfo is not installed.; .*--cluster local"
    ):
        slurm_query.partitions()
