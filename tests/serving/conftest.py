"""The server, in a thread of this process, asked over HTTP."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hpc_recolor.evaluation.colorizer import Colorizer
from hpc_recolor.serving.app import make_app
from hpc_recolor.serving.limits import Limits
from hpc_recolor.serving.server import address_of, listen, make_server


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def image(self) -> Image.Image:
        assert self.status == 200, self.content
        with Image.open(BytesIO(self.content)) as image:
            image.load()
            return image

    @property
    def line(self) -> str:
        """What a refusal says, which is one line."""
        line: str = json.loads(self.content)["detail"]
        assert line and line.isprintable(), repr(line)
        return line


def announced(place: str, size: int) -> socket.socket:
    """A connection to HOST:PORT that is about to send a photograph, which the server waits for."""
    client, answer = announce(place, size)
    assert answer.startswith(b"HTTP/1.1 100 ")
    return client


def announce(place: str, size: int) -> tuple[socket.socket, bytes]:
    """A connection to HOST:PORT that asks whether to send a photograph, and how the answer begins."""
    host, _, port = place.partition(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /api/colorize HTTP/1.1\r\nHost: {place}\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
    client.send(head.encode())
    return client, client.recv(100)


@dataclass(frozen=True)
class Served:
    """A running server. address: http://127.0.0.1:PORT."""

    address: str
    colorizer: Colorizer

    @property
    def place(self) -> str:
        return self.address.removeprefix("http://")

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def color(self, photo: bytes, path: str = "/api/colorize", **headers: str) -> Answer:
        return self.ask("POST", path, photo, headers)

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.place, timeout=300)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


NAME = "color.example"  # of a proxy in front of the server


@contextmanager
def running(colorizer: Colorizer, limits: Limits) -> Iterator[Served]:
    """A server on a free port, until the end of the context."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(make_app(colorizer, "of the tests", limits, "127.0.0.1", [NAME]))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(address_of(listening), colorizer)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


Serve = Callable[[Limits], Served]


@pytest.fixture(scope="session")
def colorizer() -> Colorizer:
    """The one in the package."""
    return Colorizer.load()


@pytest.fixture(scope="session")
def served(colorizer: Colorizer) -> Iterator[Served]:
    """With the limits of the command."""
    with running(colorizer, Limits()) as server:
        yield server


def encode(photo: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """A photograph's file."""
    written = BytesIO()
    photo.save(written, form, **options)
    return written.getvalue()


def levels_apart(one: Image.Image, other: Image.Image) -> "np.typing.NDArray[np.int64]":
    """Differences of two images of one size [levels of 255]."""
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB")).astype(int) - np.asarray(other.convert("RGB"))
    absolute: np.typing.NDArray[np.int64] = np.abs(difference)
    return absolute
