"""`python -m benchmarks.serve`: what the page's server takes, in time and memory, for photographs over HTTP."""

import http.client
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.colorize import paint
from hpc_recolor import cli

app = cli.command("benchmarks.serve")

MIB = 2**20
CLOCK_TICKS_PER_S = 100  # of proc_pid_stat(5)
ROUNDS = 5
USERS = 20


class Server:
    """The command in a process of its own, and how much it has used."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "hpc_recolor.serve", "--port", "0"]
        self.process = Popen(command, stdout=PIPE, text=True)
        assert self.process.stdout
        self.place = self.process.stdout.readline().split()[3].removeprefix("http://")
        ThreadPoolExecutor(1).submit(self.process.stdout.read)

    def send(self, photo: bytes, path: str) -> int:
        """Color a photograph, and return the bytes that come back."""
        connection = http.client.HTTPConnection(self.place, timeout=3600)
        connection.request("POST", path, photo)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        assert response.status == 200, content
        return len(content)

    def cpu_s(self) -> float:
        """Processor time until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_S

    def memory_mib(self, key: str) -> float:
        """VmRSS, or VmHWM: the most since the last call (proc_pid_status(5))."""
        lines = dict(line.split(":") for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        if key == "VmHWM":
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return int(lines[key].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@app.default
def serve(
    *,
    photos: Annotated[
        int, Parameter(help="How many are sent one after the other, for memory.", validator=Number(gte=10))
    ] = 200,
    megapixels: Annotated[
        float, Parameter(help="The largest photograph [0.1 to 100].", validator=Number(gte=0.1, lte=100))
    ] = 50,
) -> None:
    """Print the latency of previews and of full sizes, of twenty users at once, and memory over many photographs."""
    sizes = {"0.3": 0.3, "12": 12.0, f"{megapixels:g}": megapixels}
    with ProcessPoolExecutor(1, get_context("spawn")) as painter:
        files = {name: painter.submit(paint, size).result() for name, size in sizes.items()}
    server = Server()
    try:
        for name, photo in files.items():
            for path in ("/api/preview", "/api/colorize"):
                once = 1 if path == "/api/colorize" and sizes[name] > 1 else ROUNDS
                print_latency(server, f"{name} megapixels, {path}", partial(server.send, photo, path), once)
        small = files["0.3"]
        start_s = time.monotonic()
        with ThreadPoolExecutor(USERS) as users:
            times = sorted(users.map(lambda _: timed(lambda: server.send(small, "/api/preview")), range(USERS)))
        whole_s = time.monotonic() - start_s
        print(f"{USERS} users at once, a preview each: median {median(times):.2f} s, all {whole_s:.2f} s")
        print_memory(server, small, photos)
    finally:
        server.stop()


def print_latency(server: Server, name: str, send: Callable[[], int], rounds: int) -> None:
    """The median time, processor time, and the most memory above what was held."""
    server.memory_mib("VmHWM")
    held, cpu_s = server.memory_mib("VmRSS"), server.cpu_s()
    times = [timed(send) for _ in range(rounds)]
    cpu_s = (server.cpu_s() - cpu_s) / rounds
    grown = server.memory_mib("VmHWM") - held
    print(f"{name}: median {median(times):.2f} s, {cpu_s:.2f} s of processors, {grown:.0f} MiB above {held:.0f} MiB")


def print_memory(server: Server, photo: bytes, photos: int) -> None:
    """What is held after a tenth, a half and all of so many photographs."""
    held = []
    for number in range(1, photos + 1):
        server.send(photo, "/api/colorize")
        if number in (photos // 10, photos // 2, photos):
            held.append(f"{server.memory_mib('VmRSS'):.0f} MiB after {number}")
    print(f"memory over photographs of 0.3 megapixels: {', '.join(held)}")


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start_s = time.monotonic()
    action()
    return time.monotonic() - start_s


if __name__ == "__main__":
    sys.exit(cli.run(app))
