"""Profiles: typed keys, values that cannot leave their line of the script, and one-line errors."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpc_recolor.launch.profile import Container, JobOptions, Profile, load_profile, plain_path
from hpc_recolor.launch.slurm_executor import HOLD_SIGNAL
from hpc_recolor.runtime.errors import UserError
from tests.conftest import ROOT
from tests.support.job_scripts import options, text

NAMES = ("partition", "account", "qos", "network_interface")


def refused(tmp_path: Path, text: str) -> str:
    """The error for a profile with that text."""
    file = tmp_path / "profile.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(file)
    return str(caught.value)


@pytest.mark.parametrize("name", ["dev_cluster", "gpu_cluster", "container_cluster"])
def test_the_profiles_that_we_ship_are_legal(name: str) -> None:
    assert load_profile(Path(name)) == load_profile(ROOT / f"slurm/profiles/{name}.yaml") != Profile()


def shown_profiles() -> list[str]:
    """The parts of profiles that the docs show: blocks of code that begin with a key. `nodes` is a flag."""
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("clusters", "containers")]
    blocks = [block for page in pages for block in re.findall(r"((?:^    .*\n)+)", page, re.MULTILINE)]
    parts = [re.sub(r"^    (?:(?:profile|nodes): .*\n)?", "", block, flags=re.MULTILINE) for block in blocks]
    return [part for part in parts if re.match(r"[a-z_]+:(?: |\n)", part)]


@pytest.mark.parametrize("part", shown_profiles())
def test_what_the_docs_write_into_a_profile_is_legal(part: str, tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(part)
    assert load_profile(tmp_path / "profile.yaml") != Profile()


def test_the_docs_show_a_profile_for_each_recipe() -> None:
    assert len(shown_profiles()) >= 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_node: four", "gpus_per_node=four: input should be a valid integer"),
        ("gpus_per_node: -1", "gpus_per_node=-1: input should be greater than or equal to 0"),
        ("cpus_per_node: 0", "cpus_per_node=0: input should be greater than or equal to 1"),
        ("memory_gb: .inf", "memory_gb=inf: input should be a finite number"),
        ("signal_s: 5", "signal_s=5: input should be greater than or equal to 10"),
        ("time: 30:00", 'must be in quotes, such as "30:00"'),
        ("modules: cuda", "modules=cuda: input should be a valid tuple"),
        ("container: {image: a.sif}", "container.runtime="),
        ("container: {runtime: docker, image: a.sif}", "container.runtime=docker: input should be 'pyxis' or"),
        ("container: {runtime: apptainer, image: a.sif, mounts: ['/a b']}", "container.mounts.0=/a b"),
        ("container: {runtime: apptainer, image: a.sif, mounts: ['/a,/b']}", "container.mounts.0=/a,/b"),
        ("container: {runtime: apptainer, image: a.sif, mounts: [data]}", "container.mounts.0=data"),
        ("- partition", "holds a list"),
        ("partition: [main", "not valid YAML"),
    ],
)
def test_an_invalid_value_is_reported_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    line = refused(tmp_path, text)
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("value", ["a\nb", "a\tb", "a\x1b[31m", "a b", "%j", "$(id)", "`id`", "a;b", "a'b", ""])
def test_names_that_a_shell_or_slurm_would_interpret_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Profile.model_validate({key: value})


@pytest.mark.parametrize("key", ["modules", "setup"])
@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00b", "a\u2028b", "a\x85b", "a\x1bb"])
def test_lines_are_one_line(key: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Profile.model_validate({key: [value]})


@pytest.mark.parametrize("value", ["/a%j", "/a\\b", "/a\nb"])
def test_a_path_that_slurm_would_expand_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Profile.model_validate({"python": value})
    with pytest.raises(ValidationError):
        Container.model_validate({"runtime": "pyxis", "image": "a", "python": value})
    with pytest.raises(UserError, match=r"run\.folder=.* rename it"):
        plain_path(Path(value), "run.folder")


def test_a_path_with_a_colon_is_refused_because_pythonpath_would_split_it() -> None:
    with pytest.raises(UserError, match=r"run\.folder="):
        plain_path(Path("/data/2026-01-01T10:30/runs/cars"), "run.folder")


def test_a_container_needs_an_image() -> None:
    with pytest.raises(ValidationError):
        Container.model_validate({"runtime": "apptainer", "image": ""})


@pytest.mark.parametrize("text", ["max_requeues:", "partition: ~", "container:"])
def test_a_key_without_a_value_is_left_to_slurm(text: str, tmp_path: Path) -> None:
    """As for max_requeues, which has no limit then."""
    (tmp_path / "profile.yaml").write_text(text)
    assert load_profile(tmp_path / "profile.yaml") == Profile()


@pytest.mark.parametrize(("key", "near"), [("partion", "partition"), ("gpu_per_node", "gpus_per_node")])
def test_an_unknown_key_is_reported_with_the_closest_profile_key(key: str, near: str, tmp_path: Path) -> None:
    assert f"unknown key {key}, did you mean {near}?" in refused(tmp_path, f"{key}: 1")


def test_an_unknown_key_is_not_reported_with_keys_of_a_run(tmp_path: Path) -> None:
    line = refused(tmp_path, "batch_size: 16")
    assert "unknown key batch_size" in line
    assert "did you mean" not in line
    assert "see slurm/README.md" in line


@pytest.mark.parametrize("value", ["", "a", "1;reboot", "1\n2", "1_", "_1", "-1", "1_2_3"])
def test_a_job_to_wait_for_is_a_number(value: str) -> None:
    with pytest.raises(ValidationError):
        JobOptions.model_validate({"after": value})


@given(st.text(max_size=20))
def test_a_text_is_refused_or_taken_as_it_is(value: str) -> None:
    fields: tuple[Any, ...] = (*NAMES, "constraint", "time", "python", "scratch")
    for field in fields:
        try:
            made = Profile.model_validate({field: value})
        except ValidationError:
            continue
        assert getattr(made, field) == value
        assert "\n" not in value and value.isprintable()


@pytest.mark.parametrize("line", ["export A=1 \\", "echo \\"])
def test_a_setup_line_does_not_swallow_the_next_one(line: str) -> None:
    """A backslash at its end would make `export PYTHONPATH` a part of it, and another code would run."""
    try:
        made = Profile.model_validate({"setup": [line]})
    except ValidationError:
        return
    script = f'{made.setup[0]}\nexport SEEN=yes\nprintf %s "$SEEN"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("yes")


# Texts that a shell or SLURM would read in their own way, such as are legal for some fields, and any other.
ODD = (
    st.text(alphabet="a;#'\"$()`\n\r\t %\\&|<>*\x00\x1b\x85\u2028", min_size=1)
    | st.text(alphabet="aB0_.,:@+=*&|()[]-", min_size=1)
    | st.text(min_size=1)
)
SBATCH_FIELDS = ("partition", "account", "qos", "constraint")


def lines_of(made: JobOptions) -> list[str]:
    """Of the script, which bash accepts."""
    lines = text(made).split("\n")
    check = subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, capture_output=True)
    assert (check.returncode, check.stderr) == (0, "")
    return lines


def made_with(tree: dict[str, object]) -> JobOptions | None:
    """The options of such a profile; None if it is refused."""
    try:
        return options(Profile.model_validate(tree))
    except ValidationError:
        return None


def what_differs(made: JobOptions) -> tuple[list[str], list[str]]:
    """Lines that no profile would have, and lines that are gone."""
    lines, plain = lines_of(made), text(options(Profile())).split("\n")
    return [line for line in lines if line not in plain], [line for line in plain if line not in lines]


@given(st.sampled_from(SBATCH_FIELDS), ODD)
def test_any_text_for_sbatch_is_refused_or_one_quoted_value(field: str, value: str) -> None:
    if made := made_with({field: value}):
        (line,), gone = what_differs(made)
        assert not gone
        assert line.startswith(f"#SBATCH --{field}=")
        assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--{field}={value}"]


@given(ODD)
def test_any_text_as_a_module_is_refused_or_one_word(value: str) -> None:
    if made := made_with({"modules": [value]}):
        (line,), gone = what_differs(made)
        assert not gone
        assert shlex.split(line) == ["module", "load", value]


@given(st.sampled_from(["python", "pyxis", "apptainer"]), ODD, ODD)
def test_any_text_for_the_ranks_command_is_refused_or_one_word(kind: str, value: str, image: str) -> None:
    container = {"runtime": kind, "image": image, "python": value}
    made = made_with({"python": value} if kind == "python" else {"container": container})
    if made:
        (line,), (*without, plain) = what_differs(made)
        words = shlex.split(line)
        assert line.startswith("srun ") and plain.startswith("srun ")
        assert without == ([HOLD_SIGNAL] if kind == "pyxis" else [])
        assert words[-5:-2] == [value, "-u", "-m"]
        if kind != "python":
            assert {image, f"--container-image={image}"} & set(words)


@given(st.sampled_from(["scratch", "network_interface"]), ODD)
def test_any_text_for_the_nodes_stays_out_of_the_script(field: str, value: str) -> None:
    if made := made_with({field: value}):
        assert what_differs(made) == ([], [])


def test_a_setup_line_stands_as_it_is() -> None:
    line = "export A='b c' && source /opt/env.sh  # $HOME"
    assert what_differs(options(Profile(setup=(line,)))) == ([line], [])
