"""`python -m benchmarks.compile_report`: what the kernels compile to for three GPU architectures, without a GPU.

It compiles what the public functions launch for small tensors that take the fast path. Instructions are counted in the
binary and divided by the pixels (or values) of a block per thread: a loop's body counts once, and so does code that a
program runs only once.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.compile_report.report import Row, report
from benchmarks.machine import check_out, describe_machine
from hpc_recolor import cli
from hpc_recolor.runtime.errors import UserError

app = cli.command("benchmarks.compile_report")


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("op", "kernel", "GPU", "registers", "spill", "shared", "load", "store", "instructions", "per item")
    table = Table(*columns, caption="spill, shared, and widths of loads and stores in bytes")
    for row in rows:
        per_item = f"{row.instructions_per_item:.1f}" if row.instructions_per_item else ""
        widths = ("-".join(map(str, found)) for found in (row.load_bytes, row.store_bytes))
        numbers = (row.registers, row.spill_bytes, row.shared_bytes, *widths, row.instructions, per_item)
        table.add_row(row.op, row.kernel, row.architecture, *map(str, numbers))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _describe_compilers() -> dict[str, Any]:
    """The versions that the result depends on."""
    machine = describe_machine()
    versions = {name: machine["versions"][name] for name in ("torch", "triton")}
    return {"python": machine["python"], "versions": versions, "commit": machine["commit"]}


@app.default
def compile_report(*, out: Annotated[Path | None, Parameter(help="JSON file for the result.")] = None) -> None:
    """Compile every kernel for sm_80, sm_90 and sm_100, print the results, and exit with 1 on a violation."""
    check_out(out)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1", "kernels would be interpreted, not compiled", "unset it")
    rows = report()
    _print_table(rows)
    violations = [f"{row.op} {row.architecture}: {row.kernel} {text}" for row in rows for text in row.violations]
    for violation in violations:
        print(violation)
    if out:
        result = {"machine": _describe_compilers(), "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(result, indent=2) + "\n")
    if violations:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(cli.run(app))
