"""`python -m hpc_recolor.doctor`: checks a data set and this machine, or nodes of a cluster, and suggests fixes."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hpc_recolor import cli
from hpc_recolor.diagnostics.findings import Finding, Severity
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.exit_codes import BAD_INPUT
from hpc_recolor.runtime.output import escaped
from hpc_recolor.runtime.terminal_tables import Heading, Row, print_table

app = cli.command("doctor")

EXIT_CODES: dict[Severity, int] = {"ok": 0, "note": 0, "warning": 1, "error": BAD_INPUT}
COLORS: dict[Severity, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@app.default
def doctor(
    place: Annotated[
        Path | None,
        Parameter(name="DIR", help="A data set that `prepare` wrote, or a folder or archive of photographs."),
    ] = None,
    /,
    *,
    cluster: Annotated[
        Literal["slurm", "local"],
        Parameter(help="Where runs are to train; slurm: a cluster that takes no jobs is an error."),
    ] = "local",
    nodes: Annotated[
        int | None,
        Parameter(help="Try so many nodes of the cluster, instead of DIR and this machine [nodes, 1 or more]."),
    ] = None,
    partition: Annotated[str | None, Parameter(help="With --nodes: their partition [default: as of `submit`].")] = None,
    profile: Annotated[
        Path | None, Parameter(help="With --nodes: YAML file that describes the cluster, as of `submit`.")
    ] = None,
) -> int:
    """Check DIR, if given, and this machine; print the findings, with a suggested fix for each problem.

    The exit code is 0 without problems, 1 with warnings, 2 with errors.
    """
    if nodes is not None:
        if place:
            raise UserError(f"DIR={place}", "not checked with --nodes", "leave one of the two out")
        return _try_nodes(nodes, partition, profile)
    if partition or profile:
        raise UserError("--partition, --profile", "only available with --nodes", "add --nodes N")
    from hpc_recolor.diagnostics.data_set import examine
    from hpc_recolor.diagnostics.machine import check_machine

    findings = examine(place) if place else []
    print("checking this machine", file=sys.stderr)
    findings += check_machine(place or Path(), needs_cluster=cluster == "slurm")
    show(findings)
    return max(EXIT_CODES[finding.severity] for finding in findings)


def show(findings: list[Finding]) -> None:
    """Print findings as a table. Nothing is cut off: long lines are wrapped."""
    rows = []
    for finding in findings:
        lines = [escaped(finding.message)]
        if finding.fix and finding.severity != "ok":
            lines.append(f"fix: {escaped(finding.fix)}")
        rows.append(Row([finding.subject, finding.severity, "\n".join(lines)], COLORS[finding.severity]))
    print_table([Heading("subject"), Heading("severity"), Heading("finding and suggested fix", folds=True)], rows)


def _try_nodes(nodes: int, partition: str | None, profile: Path | None) -> int:
    from hpc_recolor.diagnostics.node_trials import print_result
    from hpc_recolor.diagnostics.slurm_trials import try_allocated
    from hpc_recolor.launch.defaults import read_defaults
    from hpc_recolor.launch.given_options import GivenOptions

    given: dict[str, object] = {"nodes": nodes, "partition": partition}
    options, _ = GivenOptions(None, profile, "slurm", given, {}, read_defaults()).complete()
    if options.container:
        raise UserError("--nodes", "not available with a container, in which there is no srun", "name another profile")
    print(f"trying {nodes} nodes", file=sys.stderr)
    result = try_allocated(options)
    print_result(result)
    return EXIT_CODES["error" if result.problems else "ok"]


if __name__ == "__main__":
    sys.exit(cli.run(app))
