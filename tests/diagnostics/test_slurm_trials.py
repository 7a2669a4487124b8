"""Trials of SLURM's nodes: what needs no cluster of them."""

from hpc_recolor.diagnostics.slurm_trials import node_names


def test_a_warning_of_slurm_is_no_node() -> None:
    text = "node1\nnode-2.cluster\nscontrol: error: _parse_next_key: Unknown key\nscontrol: warning\n"
    assert node_names(text) == ["node1", "node-2.cluster"]
