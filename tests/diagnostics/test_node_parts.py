"""Parts of a node's trial, here what nvidia-smi says, which a script stands for."""

from pathlib import Path

import pytest
import torch

from hpc_recolor.diagnostics import node_parts
from hpc_recolor.diagnostics.node_parts import SMI_FAULTS, BrokenNodeError

LACKING = """case $1 in *,*|*retired_pages*) echo Field is not a valid field to query; exit 2 ;; esac
"""


@pytest.fixture
def ask_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nvidia-smi is, on a node with two GPUs; it counts how often it is asked."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (2**30, 2**30))
    return tmp_path / "nvidia-smi"


def answer(smi: Path, script: str) -> None:
    smi.write_text(f"#!/bin/sh\necho asked >>{smi}.count\n{script}")
    smi.chmod(0o755)


def test_nvidia_smi_is_asked_once_for_all_fields(ask_gpus: Path) -> None:
    answer(ask_gpus, "echo '0, No, No, [N/A], Not Active'\n" * 2)
    assert node_parts.gpu(2) == {"gpu_memory": 1.0}
    assert len(Path(f"{ask_gpus}.count").read_text().split()) == 1


def test_a_gpu_that_reports_a_fault_is_named_with_it(ask_gpus: Path) -> None:
    answer(ask_gpus, "echo '0, No, No, [N/A], Not Active'; echo '0, No, Yes, [N/A], Not Active'")
    with pytest.raises(BrokenNodeError, match=r"^GPU 1: .* \(remapped_rows.failure: Yes\)$"):
        node_parts.gpu(2)


def test_a_driver_that_lacks_a_field_is_asked_for_the_others(ask_gpus: Path) -> None:
    answer(ask_gpus, LACKING + "case $1 in *ecc*) echo 0; echo 3 ;; *) echo No; echo No ;; esac")
    with pytest.raises(BrokenNodeError, match=r"^GPU 1: .* \(ecc.errors.uncorrected.volatile.total: 3\)$"):
        node_parts.gpu(2)
    assert len(Path(f"{ask_gpus}.count").read_text().split()) == 1 + len(SMI_FAULTS)
