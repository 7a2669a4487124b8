"""`submit` before anything is queued: dry runs, refusals, and the files after a refusal."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpc_recolor import cli
from hpc_recolor.launch.profile import Container, JobOptions, Profile
from hpc_recolor.launch.resolve import resolve
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT
from hpc_recolor.submit import app, with_possible_preflight
from tests.conftest import ROOT, contents
from tests.support.live import flags, recolor, slurm

REFUSED = {
    "--partition=urgnt": "no such partition, did you mean urgent?; use one of main, urgent",
    "--nodes=9": "partition main has 4 usable nodes",
    "--gpus-per-node=2": "partition main has 0 GPUs a node",
    "--time=2-0": "partition main allows 1-00:00:00 at a time",
    "--time=soon": "write minutes, H:M:S or D-H:M:S",
    "--time=2": "ranks save 120 s before the limit",
    "--account=nobody": "not available; use one of research",
    "--qos=high": "not available; use one of normal",
    "--constraint=a100": "not available; leave it out",
    "--nodes=3": "train.batch_size=4: not divisible by world size 3; use a multiple of 3",
    "--nodes=0": "greater than or equal to 1",
    "--after=999999": "unknown to SLURM",
    "--after=1;reboot": "string should match pattern",
    "--partition=main\n#SBATCH --wrap=reboot": "string should match pattern",
    "--account=$(touch HACKED)": "string should match pattern",
    "--constraint=`touch HACKED`": "string should match pattern",
    "--name=../../elsewhere": "run.name=../../elsewhere",
    "--name=two\nlines": "run.name=two lines",
    "--data.photos=nowhere": "data.photos=nowhere: no such folder",
    "--run.folder=100%": "contains %, \\, : or a line break",
    "--run.folder=two\nlines": "contains %, \\, : or a line break",
    "--profile=nowhere.yaml": "nowhere.yaml: No such file",
    "--exclude-bad": "only available with --preflight",
}


def submit(photos: Path, *arguments: str) -> int:
    """In this process; `arguments` override the default flags."""
    given = {argument.split("=")[0] for argument in arguments}
    return cli.run(app, [*arguments, *(argument for argument in flags(photos) if argument.split("=")[0] not in given)])


@pytest.mark.parametrize("argument", REFUSED)
def test_what_cannot_run_is_refused_with_one_line_and_leaves_nothing(
    argument: str,
    cluster: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(photos, argument) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[argument] in line
    assert contents(tmp_path) == {}
    assert slurm("squeue", "-h") == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--cluster=local",), "not available with --cluster local"),
        (("--grid", "train.lr=1e-4,2e-4"), "not available with a sweep"),
    ],
)
def test_nodes_are_not_tried_where_srun_cannot_start_a_probe_on_each(
    arguments: tuple[str, ...],
    reason: str,
    cluster: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(photos, "--preflight", *arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


IMPOSSIBLE = {
    "--cluster local": (JobOptions(cluster="local", preflight=True, exclude_bad=True), False),
    "a sweep": (JobOptions(preflight=True, exclude_bad=True), True),
    "a container": (
        JobOptions(preflight=True, exclude_bad=True, container=Container(runtime="pyxis", image="/image.sqsh")),
        False,
    ),
}


@pytest.mark.parametrize("where", IMPOSSIBLE)
def test_a_preflight_of_a_profile_is_left_out_where_it_cannot_be(
    where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, is_sweep = IMPOSSIBLE[where]
    left = with_possible_preflight(options, is_sweep, None, None)
    assert (left.preflight, left.exclude_bad) == (False, False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nodes are not tried before training: preflight is not available with {where}")


@pytest.mark.parametrize("where", IMPOSSIBLE)
@pytest.mark.parametrize("flags", [(True, None), (None, True)])
def test_a_preflight_that_a_flag_asks_for_is_refused_where_it_cannot_be(
    flags: tuple[bool | None, bool | None], where: str
) -> None:
    options, is_sweep = IMPOSSIBLE[where]
    with pytest.raises(UserError, match=f"not available with {where}"):
        with_possible_preflight(options, is_sweep, *flags)


def test_a_preflight_of_a_profile_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    options = resolve(Profile(preflight=True, exclude_bad=True), {"preflight": False}, "local")
    left = with_possible_preflight(options, False, False, None)
    assert (left.preflight, left.exclude_bad) == (False, False)
    assert capsys.readouterr().err == ""


def test_to_exclude_bad_nodes_without_trying_any_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert not with_possible_preflight(JobOptions(exclude_bad=True), False, None, None).exclude_bad
    assert capsys.readouterr().err == "exclude_bad has no effect without preflight\n"


def test_what_sbatch_refuses_is_one_line_and_an_existing_run_is_unchanged(
    cluster: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forked_python: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "--constraint=[a100*1]"  # a form that only sbatch checks
    assert submit(photos, odd) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "Invalid feature specification" in line
    assert contents(tmp_path) == {}
    (tmp_path / "profile.yaml").write_text(f"python: {forked_python}")
    assert submit(photos, "--cluster=local", "--train.epochs=1", "--profile=profile.yaml") == 0
    run = tmp_path / "runs" / "train"
    before = (run / "config.yaml").read_bytes()
    assert recolor(tmp_path, "jobs", "cancel", run).returncode == 0
    assert submit(photos, odd, "--train.epochs=3") == BAD_INPUT
    assert (run / "config.yaml").read_bytes() == before


def test_without_slurm_the_error_names_alternatives(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit(photos, "--nodes=2") == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "SLURM: not found on this machine" in line
    assert "--cluster local" in line
    assert contents(tmp_path) == {}


def test_a_controller_that_is_down_is_reported(
    cluster: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (cluster / "slurm.conf").read_text()
    dead = tmp_path / "slurm.conf"
    dead.write_text(text.replace("SlurmctldPort=", "SlurmctldPort=1 #") + "MessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(dead))
    assert submit(photos) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "slurmctld does not respond" in line


def test_a_dry_run_shows_script_and_ranks_asks_slurm_and_writes_nothing(
    cluster: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(photos, "--nodes=4", "--dry-run", "--check") == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --nodes=4" in shown
    assert "#SBATCH --partition=main" in shown  # from sinfo, as are time and CPUs
    assert "#SBATCH --time=60" in shown
    assert "rank 3 of 4: node 3, CPUs" in shown
    assert "to start at" in shown
    assert contents(tmp_path) == {}
    assert slurm("squeue", "-h") == ""


def test_hostile_names_of_folders_pass_through_a_real_job_uninterpreted(
    photos: Path, tmp_path: Path, cluster: Path
) -> None:
    folder = tmp_path / """a b $(touch HACKED) 'q' "d" `touch HACKED`; touch HACKED #"""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "hpc_recolor.submit", *flags(photos, **{"train.epochs": 1}), "--follow"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 0 | training runs/train on 1 x cpu" in done.stdout
    assert not list(tmp_path.rglob("HACKED"))
    assert not (ROOT / "HACKED").exists()


@pytest.mark.slow
def test_waiting_for_a_local_job_ends_with_it(photos: Path, tmp_path: Path) -> None:
    arguments = ["--cluster=local", "--gpus-per-node=0", "--wait", *flags(photos, **{"train.epochs": 1})]
    command = [sys.executable, "-m", "hpc_recolor.submit", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "finished" in recolor(tmp_path, "jobs", "list").stdout


def test_submitting_imports_no_torch(cluster: Path, photos: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from hpc_recolor import cli, submit
code = cli.run(submit.app, {[*flags(photos), "--dry-run"]!r})
sys.exit("torch" in sys.modules or code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_variables_of_sbatch_count_where_neither_flag_nor_profile_says_anything(
    photos: Path, tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "7")
    given = ("--dry-run", *flags(photos))
    script = recolor(tmp_path, "submit", *given).stdout
    assert "#SBATCH --partition=urgent\n" in script and "#SBATCH --time=7\n" in script
    script = recolor(tmp_path, "submit", *given, "--partition", "main", "--time", "30").stdout
    assert "#SBATCH --partition=main\n" in script and "#SBATCH --time=30\n" in script
