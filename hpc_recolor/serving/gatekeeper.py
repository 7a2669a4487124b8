"""Who may ask: no page of another site, under whatever name it reaches this server."""

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page needs its own files and nothing else, and says so to the browser. `blob:` are images that it has received.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Gatekeeper:
    """ASGI middleware: refuses foreign hosts and origins with 403, and adds HEADERS to every answer.

    host: the name that the server was told to listen on. proxies: names that pages may come from, too, whatever the
    port. A page elsewhere can let its own name point here (DNS rebinding), but an address or this machine's name cannot
    be made to belong to it.
    """

    def __init__(self, app: ASGIApp, host: str, proxies: Iterable[str] = ()) -> None:
        self._app = app
        self._proxies = frozenset(map(str.lower, proxies))
        machine = socket.gethostname().lower()
        own = {"localhost", host.lower(), machine, machine.partition(".")[0], f"{machine}.local"}
        self._names = own | self._proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = self._problem(Headers(scope=scope))
        answer = JSONResponse({"detail": problem}, 403) if problem else self._app
        await answer(scope, receive, send_with_headers)

    def _problem(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            return "the Host header names another machine; `serve --name NAME` allows a name"
        if origin is None or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return None
        if _name_in(origin) in self._proxies:  # one may have put its own address in place of the Host header
            return None
        return "asked by a page of another site"

    def _is_own(self, host: str) -> bool:
        name = _name_in(f"//{host}")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _name_in(url: str) -> str:
    """The host that an URL names, lower case; empty if it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
