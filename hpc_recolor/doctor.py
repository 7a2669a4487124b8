"""`python -m hpc_recolor.doctor`: what is wrong with a data set or with this machine, and what mends it."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hpc_recolor import cli
from hpc_recolor.diagnostics.findings import Finding, Severity
from hpc_recolor.runtime.exit_codes import BAD_INPUT

app = cli.command("hpc_recolor.doctor")

EXIT_CODES: dict[Severity, int] = {"ok": 0, "note": 0, "warning": 1, "error": BAD_INPUT}
COLORS: dict[Severity, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@app.default
def doctor(
    place: Annotated[
        Path | None,
        Parameter(name="DIR", help="A data set that `prepare` wrote, or a folder or archive of photographs."),
    ] = None,
    /,
) -> int:
    """Check DIR, if one is named, and this machine; print what was found, with a fix where one is needed.

    The exit code is 0 if all is well, 1 with warnings, 2 with errors.
    """
    from hpc_recolor.diagnostics.data_set import examine
    from hpc_recolor.diagnostics.machine import check_machine

    findings = examine(place) if place else []
    print("checking this machine", file=sys.stderr)
    findings += check_machine(place or Path())
    show(findings)
    return max(EXIT_CODES[finding.severity] for finding in findings)


def show(findings: list[Finding]) -> None:
    """Print a table. Nothing is cut off: what is too long for a line goes on in the next."""
    table = Table("subject", "severity", box=SIMPLE_HEAD)
    table.add_column("found, and how to mend it", overflow="fold")
    for finding in findings:
        lines = [_printable(finding.what)]
        if finding.fix and finding.severity != "ok":
            lines.append(f"fix: {_printable(finding.fix)}")
        table.add_row(finding.subject, finding.severity, "\n".join(lines), style=COLORS[finding.severity])
    Console(markup=False, highlight=False, emoji=False).print(table)


def _printable(text: str) -> str:
    """Names of files may hold anything: what no terminal shows is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


if __name__ == "__main__":
    sys.exit(cli.run(app))
