"""The SDK: `Client` speaks the supervisor's HTTP API over its unix socket.

    from agentos_native.client import Client
    for agent in Client().agents():
        print(agent.name, agent.state)

Nothing here needs root by itself, imports more than the standard library, msgspec and (for streams) wsproto, or keeps
state: a `Client` is only an address and may be shared between threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentos_native.client.client import Client
    from agentos_native.client.stream import Frame, Stream

__all__ = ["Client", "Frame", "Stream"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module("agentos_native.client." + ("client" if name == "Client" else "stream")), name)
