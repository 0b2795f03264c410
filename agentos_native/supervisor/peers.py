"""Who is at the other end of the API's socket: SO_PEERCRED of each connection, asked once, before anything is read.

uvicorn has no name for a unix socket's peer, so these protocol classes put it where ASGI has one: ``scope["client"]``
is ``("pid:<pid>", <uid>)``. The kernel took pid and uid when the peer connected (unix(7)); the uid decides, the pid is
for display.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

ADMINISTRATOR: Final = 0
_UCRED: Final = struct.Struct("iII")


def peer_of(transport: asyncio.BaseTransport) -> tuple[str, int]:
    """("pid:<pid>", uid) of a connected unix socket; uid -1 (nobody) when the kernel does not say."""
    sock = transport.get_extra_info("socket")
    try:
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return "pid:0", -1
    return f"pid:{pid}", uid


class HttpProtocol(H11Protocol):
    """HTTP/1.1 that knows its peer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.client = peer_of(transport)


class StreamProtocol(WSProtocol):
    """WebSocket that knows its peer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.client = peer_of(transport)


def is_administrator(scope: Any) -> bool:
    """Whether the peer of this request is the host's root, who alone may use the API."""
    client = scope.get("client")
    return client is not None and client[1] == ADMINISTRATOR
