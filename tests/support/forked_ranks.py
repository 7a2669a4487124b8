"""Ranks of jobs that start in milliseconds: a `python` for profiles that has the fork server run what it is asked for.

SLURM starts, signals and kills the program that `ForkedRanks` writes. It passes its arguments, environment, folder and
output to the fork server, forwards signals to the fork, and ends as the fork ends; if it is killed, so is the fork,
which runs on its host.
"""

import json
import os
import select
import socket
import struct
import sys
import threading
from pathlib import Path

from tests.support.fork_server import ForkServer

REQUEST_BYTES = 1 << 20
POLL_S = 0.02

# Called as `python -u -m MODULE ARGUMENTS...`.
PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys

channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect({address!r})
unbuffered, dash_m, module, *arguments = sys.argv[1:]
assert (unbuffered, dash_m) == ("-u", "-m")
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: channel.send(bytes([number])))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])  # which the script holds until there is a handler
environment = dict(os.environ) | {{"PYTHONUNBUFFERED": "1"}}
request = {{"module": module, "arguments": arguments, "cwd": os.getcwd(), "env": environment}}
socket.send_fds(channel, [json.dumps(request).encode()], [1, 2])
code = int(channel.recv(64) or b"1")
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class ForkedRanks:
    """Serves the program until it is closed. program: its path; folder: an existing one, for it and a socket."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self.server = server
        self.program = folder / "python"
        address = folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self.program.write_text(PROGRAM.format(python=sys.executable, address=str(address)))
        self.program.chmod(0o700)
        threading.Thread(target=self._accept, name="forked ranks", daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Run one fork for one client."""
        with client:
            message, streams, _, _ = socket.recv_fds(client, REQUEST_BYTES, 2)
            request = json.loads(message)
            process = self.server.start(
                request["module"],
                request["arguments"],
                Path(request["cwd"]),
                request["env"],
                stdout=streams[0],
                stderr=streams[1],
                beside=struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0],
            )
            for stream in streams:
                os.close(stream)
            with process:  # kills it, if the client is gone
                while process.poll() is None:
                    if select.select([client], [], [], POLL_S)[0]:
                        numbers = client.recv(64)
                        if not numbers:
                            return
                        process.send_signal(numbers[0])
                client.send(str(process.returncode).encode())
