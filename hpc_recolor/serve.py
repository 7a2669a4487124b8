"""`python -m hpc_recolor.serve`: a page to color photographs on, and an API."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from hpc_recolor import cli
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.runtime.errors import UserError
from hpc_recolor.runtime.output import escaped

app = cli.command("serve")


@app.default
def serve(
    run: Annotated[Path, cli.RUN_OR_FILE] = COLORIZER,
    /,
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 for all of this machine's, open to its network.")
    ] = "127.0.0.1",
    name: Annotated[
        tuple[str, ...],
        Parameter(help="Names that browsers reach it under, beside this machine's: a proxy's, for one."),
    ] = (),
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.", validator=Number(gte=0, lte=65535))] = 7860,
    max_megabytes: Annotated[
        int, Parameter(help="Largest file of a photograph [MB].", validator=Number(gte=1, lte=500))
    ] = 100,
    max_megapixels: Annotated[
        int, Parameter(help="Largest photograph [megapixels, up to 100].", validator=Number(gte=1, lte=100))
    ] = 100,
    max_waiting: Annotated[
        int, Parameter(help="Photographs at a time; more are asked to come again.", validator=Number(gte=1, lte=1000))
    ] = 32,
) -> None:
    """A page on which photographs are dropped and come back in color, and the same as an HTTP API.

    Photographs stay on this machine, in memory, and are forgotten once they are answered. Ctrl-C ends it.
    """
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        raise UserError("serve", "needs FastAPI and uvicorn", "pip install 'hpc-recolor[app]'")
    from hpc_recolor.evaluation.colorizer import Colorizer  # after the parsing: these import torch and FastAPI
    from hpc_recolor.serving import server
    from hpc_recolor.serving.app import make_app
    from hpc_recolor.serving.limits import Limits

    limits = Limits(max_megabytes * 1_000_000, max_megapixels * 1_000_000, max_waiting)
    with server.listen(host, port) as listening:
        shown = "the one in the package" if run == COLORIZER else escaped(run.name)
        page = make_app(Colorizer.load(run), shown, limits, host, name)
        if not server.is_loopback(listening):
            print(f"warning: --host {host} lets everyone in its network color photographs here", file=sys.stderr)
        print(f"color photographs at {server.address_of(listening)} (Ctrl-C ends it)", flush=True)
        try:
            server.make_server(page).run(sockets=[listening])
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(app))
