"""Signals by name and number, and the one that a stop begins with."""

from __future__ import annotations

import contextlib
import re
import signal
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.spec.model import AgentSpec

_REAL_TIME: Final = re.compile(r"(?:SIG)?RT(MIN\+|MAX-)([0-9]{1,2})")
"""As in ``kill -l`` and in images of systemd, which are stopped by SIGRTMIN+3."""


def signal_number(name: str) -> int:
    """The number of a signal by name (with or without SIG), ``RTMIN+3`` or number. Raises ``invalid-signal``."""
    text = name.upper()
    with contextlib.suppress(KeyError):
        return signal.Signals[text if text.startswith("SIG") else f"SIG{text}"]
    if found := _REAL_TIME.fullmatch(text):
        number = signal.SIGRTMIN + int(found[2]) if found[1] == "MIN+" else signal.SIGRTMAX - int(found[2])
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    if text.isascii() and text.isdecimal() and 0 < int(text) < signal.NSIG:
        return int(text)
    raise AgentosError("invalid-signal", f"no such signal: {name[:40]!r}", "", "For example SIGTERM, TERM or 15.")


def signal_name(number: int) -> str:
    """As people write it: ``SIGTERM``, ``SIGRTMIN+3``; the two that libc keeps for itself have only a number."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else str(number)


def stop_signal(spec: AgentSpec, image: ImageConfig | None) -> int:
    """What asks the agent to end: the spec's, else the image's STOPSIGNAL where it is one, else SIGTERM."""
    if spec.stop.signal:
        return signal_number(spec.stop.signal)
    with contextlib.suppress(AgentosError):
        if image is not None and image.stop_signal:
            return signal_number(image.stop_signal)
    return signal.SIGTERM
