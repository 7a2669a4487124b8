"""The routes: the page, and an API that is described at /openapi.json."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from hpc_recolor.data.photo import UnfitPhotoError
from hpc_recolor.evaluation.colorizer import Colorizer, color_file
from hpc_recolor.runtime.code_version import PACKAGE_VERSION
from hpc_recolor.runtime.output import escaped
from hpc_recolor.serving.gatekeeper import Gatekeeper
from hpc_recolor.serving.limits import Limits
from hpc_recolor.serving.previews import preview
from hpc_recolor.serving.turns import BusyError, GoneError, Turns
from hpc_recolor.serving.uploads import announced_bytes, drop, receive

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
RETRY_AFTER_S = 3
CHUNK_BYTES = 2**18  # sent at a time, so that memory holds what a slow reader has not taken once

# The status of a photograph that cannot be used, by the kind of its problem.
STATUS = {"foreign": 415, "too large": 413}

Vividness = Annotated[
    float | None,
    Query(
        ge=0,
        le=10,
        description="How colorful: 0 is gray, 1 as the network predicts, 2 about as photographs are; by default the "
        "one chosen on validation photographs.",
    ),
]
BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The file of one photograph, gray or color: JPEG, PNG, TIFF, WebP, AVIF, BMP or HEIC.",
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"description": meaning, "content": {"application/json": {"example": {"detail": "one line"}}}}
    for code, meaning in {
        403: "The page that asks is of another site.",
        408: "The photograph arrives too slowly.",
        411: "Content-Length is missing.",
        413: "Too many bytes or pixels.",
        415: "No photograph, or of a format that is not read.",
        422: "A photograph that cannot be read, or a vividness out of range.",
        503: "Too many photographs wait; `Retry-After` says when to ask again [s].",
    }.items()
}


class Info(BaseModel):
    """What the server colors with, and its limits."""

    version: str
    colorizer: str
    vividness: float
    max_bytes: int
    max_pixels: int
    page_photos: int


@dataclass(frozen=True)
class Desk:
    """Takes a photograph from a request and runs a job on it."""

    limits: Limits
    turns: Turns

    async def answer(self, request: Request, job: Callable[[bytes], tuple[memoryview, str]]) -> Response:
        """The job's result, an image and its media type, as an answer. Raises HTTPException with one line."""
        size = await announced_bytes(request, self.limits)
        try:
            self.turns.enter(size)
        except BusyError:
            await drop(request)
            raise HTTPException(
                503, "busy: too many photographs wait, try again", {"Retry-After": f"{RETRY_AFTER_S}"}
            ) from None
        leave = partial(self.turns.leave, size)
        try:
            content = await receive(request, self.limits)
            image, media_type = await self.turns.run(request.is_disconnected, partial(job, content))
        except BaseException as error:
            leave()
            raise _as_answer(error) from None
        return ImageResponse(image, media_type, leave)


class ImageResponse(StreamingResponse):
    """An image file. on_sent: called once it is sent, or its reader is gone."""

    def __init__(self, image: memoryview, media_type: str, on_sent: Callable[[], None]) -> None:
        self._on_sent = on_sent
        super().__init__(_chunks(image), headers={"Content-Length": f"{len(image)}"}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._on_sent()


async def _chunks(image: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(image), CHUNK_BYTES):
        yield image[start : start + CHUNK_BYTES]


def _as_answer(error: BaseException) -> BaseException:
    if isinstance(error, UnfitPhotoError):
        kind, _, detail = str(error).partition(": ")
        problem = detail.removesuffix(" that Pillow knows") if kind == "foreign" else str(error)
        return HTTPException(STATUS.get(kind, 422), escaped(problem))
    if isinstance(error, GoneError | ClientDisconnect):
        return HTTPException(499, "the client is gone")  # nobody reads it
    if isinstance(error, asyncio.CancelledError):
        return HTTPException(503, "the server is being stopped")
    return error


def make_app(colorizer: Colorizer, name: str, limits: Limits, host: str, proxies: Iterable[str] = ()) -> FastAPI:
    """The server as an ASGI app. name: of the colorizer, to be shown; host, proxies: see `Gatekeeper`."""
    app = FastAPI(
        title="hpc_recolor",
        version=PACKAGE_VERSION,
        description="Colors gray photographs. Nothing that is sent is kept, on disk or in memory.",
        docs_url=None,  # these two load scripts of other servers
        redoc_url=None,
    )
    app.add_middleware(Gatekeeper, host=host, proxies=proxies)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    for path, file in FILES.items():
        _add_file(app, path, PAGE / file)
    info = Info(
        version=PACKAGE_VERSION,
        colorizer=name,
        vividness=colorizer.vividness,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
        page_photos=limits.page_photos,
    )

    @app.get("/api/info")
    async def get_info() -> Info:
        """What the server colors with, and its limits."""
        return info

    _add_coloring(app, colorizer, Desk(limits, Turns(limits)))
    return app


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path, include_in_schema=False)
    async def get_file() -> FileResponse:
        return FileResponse(file)


def _add_coloring(app: FastAPI, colorizer: Colorizer, desk: Desk) -> None:
    def color(content: bytes, vividness: float | None) -> tuple[memoryview, str]:
        start_s = time.monotonic()
        colored = color_file(colorizer, content, vividness, desk.limits.max_pixels)
        print(f"{colored.pixels / 1e6:.1f} megapixels in {time.monotonic() - start_s:.1f} s", flush=True)
        return colored.png, "image/png"

    def show(content: bytes, vividness: float | None) -> tuple[memoryview, str]:
        shown = preview(colorizer, content, vividness, desk.limits.max_pixels)
        return shown.content, shown.media_type

    @app.post("/api/colorize", responses=REFUSALS | _image("image/png"), openapi_extra=BODY, response_class=Response)
    async def colorize(request: Request, vividness: Vividness = None) -> Response:
        """A PNG of the photograph in color: full size, upright, sRGB, with its own luminance, transparency and EXIF."""
        return await desk.answer(request, partial(color, vividness=vividness))

    @app.post("/api/preview", responses=REFUSALS | _image("image/jpeg"), openapi_extra=BODY, response_class=Response)
    async def preview_of(request: Request, vividness: Vividness = None) -> Response:
        """The same for a screen: no side above 1280 pixels, as JPEG; as PNG if it has transparency."""
        return await desk.answer(request, partial(show, vividness=vividness))


def _image(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "The image.", "content": {media_type: {}}}}


async def _refuse_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    problem = f"{first['loc'][-1]}={first.get('input')}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return JSONResponse({"detail": escaped(problem)}, 422)
