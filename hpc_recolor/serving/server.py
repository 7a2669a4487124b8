"""Listens on a socket, and serves until it is interrupted."""

import asyncio
import ipaddress
import logging
import os
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hpc_recolor.runtime.errors import UserError

CONNECTIONS = 200
HEADER_BYTES = 16_384
GRACE_S = 2  # for answers that are being sent when the server is stopped
# For a part of an answer (CHUNK_BYTES of app.py at most) to be taken by its reader [s].
PART_S = 20.0


class Connection(H11Protocol):
    """Cuts off a reader that does not take what it is sent within PART_S, as its answer keeps the place of another."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Have writing paused whenever anything is left to be taken."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        """Wait for the reader."""
        super().pause_writing()
        self._cut_off = self.loop.call_later(PART_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken all."""
        self._cut_off.cancel()
        super().resume_writing()


def listen(host: str, port: int) -> socket.socket:
    """A socket on which the system already queues connections. port: 0 for a free one.

    Raises UserError if the host is not this machine's or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)  # its text names the address once more
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port}", f"cannot listen there ({reason})", "use another port; 0 takes a free one"
        ) from None


def address_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listening.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Whether this machine alone can connect."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def make_server(app: FastAPI) -> uvicorn.Server:
    """Call its `run` with `sockets`: it answers until SIGINT or SIGTERM, which then takes its usual effect."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of browsers that leave before their answer
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    return uvicorn.Server(config)
