"""`python -m hpc_recolor.diagnostics.node_probe`: tries the node that it runs on, part by part, as it is told.

It reads orders from stdin and answers on stdout, both a line of JSON each. Each part runs in a process of its own that
is killed after a time: a disk, a GPU or a network that hangs is a finding, and ends only its part.
"""

import hashlib
import json
import os
import platform
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hpc_recolor
from hpc_recolor.diagnostics import node_parts
from hpc_recolor.diagnostics.findings import first_line
from hpc_recolor.runtime.process import wait_without_spinning

# What begins an answer: libraries, too, print to stdout.
MARK = "node-probe "
PARTS: Mapping[str, Callable[..., dict[str, float]]] = {
    "gpu": node_parts.gpu,
    "product": node_parts.product,
    "decode": node_parts.decode,
    "memory": node_parts.memory,
    "write": node_parts.write,
    "all_reduce": node_parts.all_reduce,
}
DRIVER = Path("/proc/driver/nvidia/version")


def main() -> int:
    """Answer orders until stdin ends. Returns the exit code."""
    wait_without_spinning()
    started = {"versions": versions(), "address": own_address()}
    _answer(0, started)
    for line in sys.stdin:
        order = json.loads(line)
        number, part, limit_s = order["number"], order["part"], order["limit_s"]
        _answer(number, {"time": time.time()} if part == "clock" else in_time(PARTS[part], order["with"], limit_s))
    sys.stdout.flush()
    os._exit(0)  # a part that could not be killed is not waited for


def versions() -> dict[str, str]:
    """Of what must be the same on all nodes, and of the kernel. Imports torch, for the parts to find it imported."""
    import torch

    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "hpc_recolor": f"{hpc_recolor.__version__} ({code_digest()})",
        "kernel": platform.release(),
    }
    if DRIVER.exists():
        found["driver"] = _driver_release(DRIVER.read_text())
    return found


def code_digest() -> str:
    """Eight digits of the hash of our code as this node reads it."""
    package, digest = Path(hpc_recolor.__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def own_address() -> str:
    """The address of this node, for those that do not know its name."""
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return node_parts.address_of(name) or node_parts.address_of(socket.gethostname()) or "127.0.0.1"


def in_time(part: Callable[..., dict[str, float]], arguments: Mapping[str, Any], limit_s: float) -> dict[str, object]:
    """What a part returns, as `values`, or why it failed, as `failure`; it is killed after `limit_s`."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run(part, arguments, write_end)
    os.close(write_end)
    text = _read(read_end, time.monotonic() + limit_s)
    os.close(read_end)
    os.kill(child, signal.SIGKILL)  # its answer is all that it was for
    if text is None:
        os.waitpid(child, os.WNOHANG)  # what hangs in the kernel does not end
        return {"failure": f"was not over after {limit_s:.0f} s"}
    _, status = os.waitpid(child, 0)
    answer: dict[str, object] = json.loads(text) if text else {"failure": f"ended by signal {os.WTERMSIG(status)}"}
    return answer


def _driver_release(text: str) -> str:
    """The release in the first line of /proc/driver/nvidia/version, whatever else that says of the module."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else "unknown"


def _run(part: Callable[..., dict[str, float]], arguments: Mapping[str, Any], write_end: int) -> None:
    """In the child, which ends here."""
    try:
        answer: dict[str, object] = {"values": part(**arguments)}
    except OSError as error:
        answer = {"failure": f"{error.filename or ''} {error.strerror or error}".strip()}
    except BaseException as error:
        answer = {"failure": first_line(error)}
    os.write(write_end, json.dumps(answer).encode())
    os._exit(0)


def _read(descriptor: int, deadline_s: float) -> bytes | None:
    """All that is written to a pipe until it is closed; None if that is not before the deadline."""
    text = b""
    while select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return text
        text += chunk
    return None


def _answer(number: int, content: Mapping[str, object]) -> None:
    print(f"{MARK}{json.dumps({'number': number} | dict(content))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
