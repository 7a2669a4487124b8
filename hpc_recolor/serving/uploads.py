"""A photograph that arrives as the body of a request."""

import asyncio
from contextlib import suppress

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from hpc_recolor.serving.limits import Limits

# A browser reads no answer before it has sent all; what it sends up to here is therefore received, and dropped.
DROPPED_BYTES = 1_000_000_000


async def announced_bytes(request: Request, limits: Limits) -> int:
    """The length that the request announces. Raises HTTPException if it announces none, or more than is taken."""
    announced = request.headers.get("content-length", "")
    # A body in chunks has no length, whatever is announced beside it (RFC 9112, 6.3).
    if not announced.isdecimal() or "transfer-encoding" in request.headers:
        raise HTTPException(411, "send the photograph as the body, with its Content-Length")
    if int(announced) > limits.max_bytes:
        await drop(request)
        raise HTTPException(413, f"too large: {int(announced) / 1e6:.0f} MB, more than {limits.max_bytes / 1e6:.0f} MB")
    return int(announced)


async def receive(request: Request, limits: Limits) -> bytes:
    """The body, of the announced length: the protocol takes no more. Raises HTTPException if it comes too slowly."""
    try:
        async with asyncio.timeout(limits.upload_s):
            return await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the photograph did not arrive within {limits.upload_s:.0f} s") from None


async def drop(request: Request) -> None:
    """Receive a body that is not wanted, up to DROPPED_BYTES. Who asks whether to send it is answered at once."""
    if "expect" in request.headers:
        return
    dropped = 0
    with suppress(ClientDisconnect):
        async for chunk in request.stream():
            dropped += len(chunk)
            if dropped > DROPPED_BYTES:
                return
