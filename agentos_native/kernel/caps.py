"""capabilities(7): names and numbers (include/uapi/linux/capability.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

NAMES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Without the prefix CAP_; the index is the number."""

_VERSION_3: Final = 0x20080522


def number(name: str) -> int:
    """The number of `name`, with or without CAP_, in any case. Raises KeyError."""
    plain = name.upper().removeprefix("CAP_")
    if plain not in NAMES:
        raise KeyError(name)
    return NAMES.index(plain)


def mask(names: Iterable[str]) -> int:
    """The bit mask of `names`. Raises KeyError."""
    bits = 0
    for name in names:
        bits |= 1 << number(name)
    return bits


def capset_arguments(effective: int, permitted: int, inheritable: int) -> tuple[bytes, bytes]:
    """The header (of the calling thread) and the data of capset(2), from bit masks."""
    halves = [
        (effective >> shift & 0xFFFFFFFF, permitted >> shift & 0xFFFFFFFF, inheritable >> shift & 0xFFFFFFFF)
        for shift in (0, 32)
    ]
    return struct.pack("=Ii", _VERSION_3, 0), struct.pack("=6I", *halves[0], *halves[1])
