"""Kubernetes' quantities: ``200m``, ``0.5``, ``2``, ``64Mi``, ``1G``, ``1e3``, and durations such as ``1m30s``.

CPU is counted in millicores, memory in bytes, time in seconds. What cannot be held exactly in those units is refused
rather than rounded: a reservation must not become another one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from agentos_native.errors import AgentosError

MAX_BYTES: Final = 2**63 - 1
MAX_CPU_MILLIS: Final = 10**9
"""A million CPUs."""
MAX_SECONDS: Final = 10 * 365 * 86400.0

_QUANTITY: Final = re.compile(r"([0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})([A-Za-z]{0,2}|[eE][-+]?[0-9]{1,6})\Z")
_SUFFIXES: Final[dict[str, Fraction]] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{letter: Fraction(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Fraction(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}
_MAX_EXPONENT: Final = 40
_DURATION: Final = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+)ms)?\Z")
_SECONDS: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?\Z")


def _refuse(text: str, why: str, hint: str) -> AgentosError:
    shown = text if len(text) <= 40 else text[:39] + "…"
    return AgentosError("invalid-quantity", f"{shown!r} {why}", hint=hint)


def parse_quantity(text: str, hint: str = "write a quantity such as 2, 0.5, 200m, 64Mi, 1G or 1e3") -> Fraction:
    """The exact value of a quantity. Raises ``invalid-quantity`` for anything else, among it negative numbers."""
    text = text.strip() if len(text) <= 200 else text
    if not text:
        raise _refuse(text, "is empty", hint)
    if text.startswith("-"):
        raise _refuse(text, "is negative", hint)
    match = _QUANTITY.match(text.removeprefix("+"))
    if not match:
        raise _refuse(text, "is not a quantity", hint)
    number, suffix = Fraction(match[1] if match[1] != "." else "0"), match[2]
    if suffix in _SUFFIXES:
        return number * _SUFFIXES[suffix]
    if suffix[0] in "eE" and len(suffix) > 1:
        exponent = int(suffix[1:])
        if abs(exponent) > _MAX_EXPONENT:
            raise _refuse(text, "is out of range", hint)
        return number * Fraction(10) ** exponent
    known = " ".join(name for name in _SUFFIXES if name)
    raise _refuse(text, f"has an unknown suffix {suffix!r}", f"the suffixes are {known}")


def parse_cpu(text: str) -> int:
    """Millicores of a CPU quantity: ``2`` → 2000, ``200m`` → 200."""
    hint = "write CPUs as 2, 0.5 or 500m"
    millis = parse_quantity(text, hint) * 1000
    if millis > MAX_CPU_MILLIS:
        raise _refuse(text, "is out of range", hint)
    if millis.denominator != 1:
        raise _refuse(text, "is finer than 1m, the smallest part of a CPU", hint)
    return int(millis)


def parse_memory(text: str) -> int:
    """Bytes of a memory quantity: ``64Mi`` → 67108864, ``1G`` → 1000000000."""
    hint = "write memory as 64Mi, 1Gi, 500M or a number of bytes"
    size = parse_quantity(text, hint)
    if size > MAX_BYTES:
        raise _refuse(text, "is out of range", hint)
    if size.denominator != 1:
        slip = text.strip()
        meant = f"; 'm' means a thousandth, perhaps {slip[:-1]}Mi is meant" if slip.endswith("m") else ""
        raise _refuse(text, "is not a whole number of bytes", hint + meant)
    return int(size)


def parse_rate(text: str) -> int:
    """Bits per second of a network rate, as Kubernetes writes bandwidth: ``10M`` → 10000000, ``1Gi`` → 2³⁰."""
    hint = "write bits per second as 10M, 1G or a number"
    rate = parse_quantity(text, hint)
    if rate > MAX_BYTES:
        raise _refuse(text, "is out of range", hint)
    if rate.denominator != 1:
        raise _refuse(text, "is not a whole number of bits per second", hint)
    return int(rate)


def parse_duration(text: str) -> float:
    """Seconds of a duration: ``10``, ``0.5``, ``1s``, ``500ms``, ``1m30s``, ``2h``."""
    hint = "write a time as 10s, 500ms, 1m30s, 2h or a number of seconds"
    stripped = text.strip()
    if _SECONDS.match(stripped):
        seconds = float(stripped)
    elif stripped and len(stripped) <= 60 and (match := _DURATION.match(stripped)):
        days, hours, minutes, plain, millis = (float(part or 0) for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + plain + millis / 1000
    else:
        raise _refuse(text, "is negative" if stripped.startswith("-") else "is not a time", hint)
    if seconds > MAX_SECONDS:
        raise _refuse(text, "is out of range", hint)
    return seconds


def format_cpu(millis: int) -> str:
    """The shortest quantity: 2000 → ``2``, 200 → ``200m``."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def format_memory(size: int) -> str:
    """The shortest exact quantity: 67108864 → ``64Mi``, 1000000000 → ``1G``."""
    for power, letter in reversed(tuple(enumerate("KMGTPE", 1))):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{letter}i"
    for power, letter in reversed(tuple(enumerate("kMGTPE", 1))):
        if size and size % 1000**power == 0:
            return f"{size // 1000**power}{letter}"
    return str(size)


def format_rate(rate: int) -> str:
    """The shortest exact quantity, by thousands where that is exact: 80000000 → ``80M``, 2³⁰ → ``1Gi``."""
    for power, letter in reversed(tuple(enumerate("kMGTPE", 1))):
        if rate and rate % 1000**power == 0:
            return f"{rate // 1000**power}{letter}"
    return format_memory(rate)


def format_duration(seconds: float) -> str:
    """A time that `parse_duration` reads back: 1.0 → ``1s``, 0.5 → ``0.5s``."""
    return f"{seconds:.12f}".rstrip("0").rstrip(".") + "s"
