"""Photographs over HTTP: what comes back is what `colorize` writes, and what cannot be colored gets a line."""

import http.client
import json
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpc_recolor.data.photo import MAX_PIXELS
from hpc_recolor.evaluation.colorizer import Colorizer, color_file, colorize_files
from hpc_recolor.models.weights_package import COLORIZER
from hpc_recolor.serving.limits import Limits
from hpc_recolor.serving.previews import LONGEST_SIDE
from hpc_recolor.serving.server import HEADER_BYTES
from tests.conftest import ROOT, paint_photo
from tests.serving.conftest import NAME, Answer, Served, announce, announced, encode, levels_apart, running
from tests.support import tolerances
from tests.support.bad_photos import sixteen_bit_png, write_bomb, write_unreadable
from tests.support.icc import rgb_profile
from tests.support.live import until

USERS = 20
MADE_AT = slice(24, 36)  # the time in a color profile


def turned_photo() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    return encode(paint_photo(1, 90, 60), exif=exif, dpi=(300, 300))


def transparent_photo() -> bytes:
    photo = paint_photo(2, 64, 48)
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    return encode(photo, "PNG")


PHOTOS: dict[str, Callable[[], bytes]] = {
    "gray": lambda: encode(paint_photo(0, 200, 150).convert("L"), "PNG"),
    "turned": turned_photo,
    "transparent": transparent_photo,
    "wide gamut": lambda: encode(paint_photo(3, 80, 60), "JPEG", icc_profile=rgb_profile()),
    "deep": lambda: sixteen_bit_png(np.asarray(paint_photo(4, 40, 30))),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_photograph_comes_back_as_colorize_writes_it(served: Served, tmp_path: Path, kind: str) -> None:
    content = PHOTOS[kind]()
    (tmp_path / "photo").write_bytes(content)
    colorize_files([tmp_path / "photo"], COLORIZER, tmp_path / "out", on_written=lambda file: None)
    answer = served.color(content)
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(tmp_path / "out" / "photo.png") as written:
        assert answer.image.mode == written.mode
        assert answer.image.getexif() == written.getexif()
        assert answer.image.info.get("dpi") == written.info.get("dpi")
        one, other = (image.info["icc_profile"] for image in (answer.image, written))
        assert one[MADE_AT.stop :] == other[MADE_AT.stop :] and one[: MADE_AT.start] == other[: MADE_AT.start]
        assert levels_apart(answer.image, written).max() <= tolerances.ONE_NETWORK_TWICE
        if written.mode == "RGBA":
            assert answer.image.getchannel("A").tobytes() == written.getchannel("A").tobytes()


def test_vividness_is_the_one_of_the_request(served: Served) -> None:
    gray = encode(paint_photo(0, 200, 150).convert("L"))
    images = [served.color(gray, f"/api/colorize?vividness={vividness}").image for vividness in (0, 1, 2.5)]
    spread = [float(np.ptp(np.asarray(image).astype(int), axis=2).mean()) for image in images]
    assert spread[0] < 1 < spread[1] < spread[2]
    assert levels_apart(images[1], Image.open(BytesIO(color_file(served.colorizer, gray, 1.0).png))).max() <= 1


@pytest.fixture(scope="module")
def large() -> bytes:
    """A photograph that is larger than a preview."""
    return encode(paint_photo(5, 2700, 1500).convert("L"), quality=95)


def test_a_preview_shows_what_the_download_holds(served: Served, large: bytes) -> None:
    shown, whole = served.color(large, "/api/preview"), served.color(large)
    assert shown.headers["Content-Type"] == "image/jpeg"
    assert max(shown.image.size) <= LONGEST_SIDE < max(whole.image.size) == 2700
    same_size = whole.image.resize(shown.image.size, Image.Resampling.BILINEAR)
    assert levels_apart(shown.image, same_size).mean() < tolerances.PREVIEW


def test_a_preview_colored_again_is_the_preview_of_the_photograph(served: Served, large: bytes) -> None:
    """So that the page need not send a large photograph for every move of its slider."""
    shown = served.color(large, "/api/preview?vividness=1").content
    again = served.color(shown, "/api/preview?vividness=2").image
    assert levels_apart(again, served.color(large, "/api/preview?vividness=2").image).mean() < tolerances.PREVIEW


def test_a_preview_keeps_transparency(served: Served) -> None:
    answer = served.color(transparent_photo(), "/api/preview")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.image.mode == "RGBA"


def test_a_preview_of_a_small_photograph_is_no_larger(served: Served) -> None:
    assert served.color(turned_photo(), "/api/preview").image.size == (60, 90)


@pytest.mark.parametrize("path", ["/api/colorize", "/api/preview"])
@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"no photograph", 415, "holds no photograph"),
        (b"", 422, "empty"),
        (encode(paint_photo(0), "GIF"), 415, "holds GIF"),
        (encode(paint_photo(0, 320, 240), "JPEG")[:3000], 422, "truncated"),
    ],
    ids=["text", "nothing", "gif", "half"],
)
def test_what_is_no_photograph_gets_a_line(
    served: Served, path: str, content: bytes, status: int, expected: str
) -> None:
    answer = served.color(content, path)
    assert (answer.status, expected in answer.line) == (status, True), answer


@pytest.mark.parametrize("vividness", ["x", "-1", "11", "nan", "inf"])
def test_a_vividness_out_of_range_gets_a_line(served: Served, vividness: str) -> None:
    answer = served.color(turned_photo(), f"/api/colorize?vividness={vividness}")
    assert (answer.status, answer.line.startswith(f"vividness={vividness}: ")) == (422, True), answer


@pytest.fixture(scope="module")
def narrow(colorizer: Colorizer) -> Iterator[Served]:
    """A server that takes little: three photographs at a time."""
    limits = Limits(max_bytes=50_000, max_pixels=10_000, max_waiting=3, upload_s=0.5)
    with running(colorizer, limits) as server:
        yield server


def test_too_many_bytes_or_pixels_get_a_line(narrow: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    answer = narrow.color(encode(Image.fromarray(noise), "PNG"))
    assert (answer.status, answer.line) == (413, "too large: 0 MB, more than 0 MB")
    answer = narrow.color(encode(paint_photo(0, 101, 100)))
    assert (answer.status, answer.line) == (413, "too large: 101 x 100, more than 10,000 pixels")
    assert narrow.color(encode(paint_photo(0, 100, 100))).status == 200


def test_a_photograph_that_arrives_too_slowly_is_given_up(narrow: Served) -> None:
    with announced(narrow.place, 1000) as client:
        client.send(b"\xff\xd8")
        assert client.recv(2000).startswith(b"HTTP/1.1 408 ")


def test_more_photographs_than_may_wait_are_asked_to_come_again(colorizer: Colorizer) -> None:
    photo = encode(paint_photo(0))
    with running(colorizer, Limits(max_waiting=3)) as server:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(announced(server.place, len(photo)))
            busy = server.color(photo)
            assert (busy.status, busy.headers["Retry-After"]) == (503, "3")
            assert "busy" in busy.line
        until(lambda: server.color(photo).status == 200, "the three are gone")


READERS = 3
NEVER, SLOWLY = 0, 1000  # bytes that a reader takes at a time


@contextmanager
def reading(place: str, photo: bytes, part: int) -> Iterator[None]:
    """A connection that has a photograph colored, and of the answer then takes `part` bytes 20 times a second."""
    host, _, port = place.partition(":")
    with socket.socket() as client, ThreadPoolExecutor(1) as thread:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect((host, int(port)))
        head = f"POST /api/colorize HTTP/1.1\r\nHost: {place}\r\nContent-Length: {len(photo)}\r\n\r\n"
        client.sendall(head.encode() + photo)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        is_over = threading.Event()

        def read() -> None:
            while not is_over.wait(0.05):
                client.recv(part)

        reader = thread.submit(read) if part else None
        try:
            yield
        finally:
            is_over.set()
            if reader:
                reader.result()


def are_free(place: str, places: int) -> bool:
    """Whether so many photographs may come at a time."""
    asked = [announce(place, 1) for _ in range(places)]
    for client, _ in asked:
        client.close()
    return all(answer.startswith(b"HTTP/1.1 100 ") for _, answer in asked)


@pytest.mark.parametrize("part", [NEVER, SLOWLY])
def test_readers_that_do_not_take_their_answers_lose_their_places(
    colorizer: Colorizer, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("hpc_recolor.serving.server.PART_S", 1.0)
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300), np.uint8)
    photo = encode(Image.fromarray(noise), "PNG")  # whose answer is larger than what the system holds of it
    with running(colorizer, Limits(max_waiting=READERS)) as server, ExitStack() as stack:
        for _ in range(READERS):
            stack.enter_context(reading(server.place, photo, part))
        until(lambda: are_free(server.place, READERS), "places of the readers")
        assert server.color(turned_photo()).status == 200


def test_all_of_twenty_users_at_once_get_their_own_photographs(served: Served) -> None:
    photos = [encode(paint_photo(number, 60 + number, 50)) for number in range(USERS)]
    with ThreadPoolExecutor(USERS) as users:
        answers = list(users.map(served.color, photos))
    for photo, answer in zip(photos, answers, strict=True):
        expected = Image.open(BytesIO(color_file(served.colorizer, photo).png))
        assert levels_apart(answer.image, expected).max() <= tolerances.ONE_NETWORK_TWICE


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:1234", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("192.168.1.20:7860", True),
        (socket.gethostname(), True),
        (NAME, True),
        ("attacker.example", False),
        ("127.0.0.1.attacker.example:7860", False),
        ("localhost.attacker.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_names_that_others_can_point_here_are_refused(served: Served, host: str, allowed: bool) -> None:
    answer = served.get("/api/info", Host=host)
    assert answer.status == (200 if allowed else 403)
    assert allowed or answer.line == "the Host header names another machine; `serve --name NAME` allows a name"


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_pages_of_other_sites_are_refused(served: Served, origin: str) -> None:
    answer = served.color(turned_photo(), Origin=origin)
    assert (answer.status, answer.line) == (403, "asked by a page of another site")


def test_our_own_page_is_not_refused(served: Served) -> None:
    assert served.color(turned_photo(), Origin=served.address).status == 200


@pytest.mark.parametrize("host", [NAME, "127.0.0.1:7860"])
def test_our_own_page_is_not_refused_behind_a_proxy(served: Served, host: str) -> None:
    """Whether it passes the Host header on, or puts the server's address in its place."""
    assert served.color(turned_photo(), Host=host, Origin=f"https://{NAME}").status == 200


def test_the_api_describes_itself(served: Served) -> None:
    described = json.loads(served.get("/openapi.json").content)
    for path in ("/api/colorize", "/api/preview"):
        post = described["paths"][path]["post"]
        assert set(post["responses"]) == {"200", "403", "408", "411", "413", "415", "422", "503"}
        assert "application/octet-stream" in post["requestBody"]["content"]
    info = json.loads(served.get("/api/info").content)
    assert info["max_pixels"] == MAX_PIXELS and info["vividness"] == served.colorizer.vividness


def test_the_example_of_the_docs_runs(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "serve.md").read_text()
    lines = re.findall(r"^    (from pathlib.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    code = lines[0].replace("\n    ", "\n").replace("http://127.0.0.1:7860", served.address)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(turned_photo())
    exec(code, {})
    with Image.open("colored.png") as colored:
        assert colored.size == (60, 90)


def test_no_page_of_the_server_loads_anything_of_others(served: Served) -> None:
    for path in ("/docs", "/redoc"):  # FastAPI's own, whose scripts lie elsewhere
        assert served.get(path).status == 404
    policy = served.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def hostile_photos(folder: Path) -> Iterator[bytes]:
    """Files that no one should send, none of which can be colored: cut ones, bombs, other kinds, noise."""
    folder.mkdir()
    yield from ((folder / case.name).read_bytes() for case in write_unreadable(folder))
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"):
        whole = encode(paint_photo(7, 160, 120), form)
        yield from (whole[: int(share * len(whole))] for share in np.linspace(0.05, 0.95, 11))
    for side in (12_000, 60_000, 2**31 - 1):
        write_bomb(folder / "bomb.png", side)
        yield (folder / "bomb.png").read_bytes()
    beginnings = (
        b"GIF89a",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x7fELF",
        b"<svg onload=alert(1)>",
        b"8BPS\0",
        b"MZ",
        b"II*\0",
    )
    yield from (beginning + bytes(2000) for beginning in beginnings)
    noise = random.Random(0)
    for beginning in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBP", b"\0\0\0\x20ftypavif"):
        yield from (beginning + noise.randbytes(3000) for _ in range(4))


HOSTILE_HEADS = (
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nX: " + b"x" * 4 * HEADER_BYTES + b"\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /api/colorize HTTP/1.1\r\n\r\n",
    b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: %(place)s\r\n\r\n",
    b"GET /%%2e%%2e/app.py HTTP/1.1\r\nHost: %(place)s\r\n\r\n",
    b"GET /page.js/../../app.py HTTP/1.1\r\nHost: %(place)s\r\n\r\n",
    b"PUT /api/colorize HTTP/1.1\r\nHost: %(place)s\r\nContent-Length: 0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"nonsense\r\n\r\n",
)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as commands do
def test_a_hundred_hostile_uploads_get_a_line_each(served: Served, tmp_path: Path) -> None:
    photos = list(hostile_photos(tmp_path / "bad"))
    assert len(photos) >= 100
    for number, photo in enumerate(photos):
        answer = served.color(photo, ("/api/colorize", "/api/preview")[number % 2])
        assert 400 <= answer.status < 500 and len(answer.line) < 300, (number, answer)
    assert served.color(turned_photo()).status == 200


@pytest.mark.parametrize("head", HOSTILE_HEADS, ids=lambda head: head[-40:].decode("latin1"))
def test_a_hostile_request_is_refused(served: Served, head: bytes) -> None:
    assert 400 <= status_of(served, head) < 500
    assert served.get("/api/info").status == 200


def status_of(server: Served, head: bytes) -> int:
    """The status of the answer to these bytes, which may come before all are sent."""
    host, _, port = server.place.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head % {b"place": server.place.encode()})
        client.shutdown(socket.SHUT_WR)
        with closing(http.client.HTTPResponse(client)) as answer:
            answer.begin()
            return answer.status


def test_an_answer_is_not_read_but_sent_in_parts(served: Served) -> None:
    """One of several megabytes arrives whole."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200), np.uint8)
    answer: Answer = served.color(encode(Image.fromarray(noise), "PNG"))
    assert int(answer.headers["Content-Length"]) == len(answer.content) > 2**20
    assert answer.image.size == (1200, 900)
