"""netlink(7): a socket on which a batch of ready-made messages is sent and answered for as one.

Only the last message of a batch asks for an acknowledgement. The kernel answers a failing message whether asked or not,
and works through a batch in order, so the last answer says that all answers are there: one `send`, one `recv` when
everything went well.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from errno import EINTR
from typing import Final, Protocol

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_ACK_TLVS: Final = 0x200
_NLM_F_DUMP_INTR: Final = 0x10
_DUMP_ATTEMPTS: Final = 20
_NLMSGERR_ATTR_MSG: Final = 1
_HEADER: Final = struct.Struct("=LHHLL")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLA_TYPE_MASK: Final = 0x3FFF
_RECEIVE_BYTES: Final = 65536
_TIMEOUT_SECONDS: Final = 30
"""Far above any wait for the kernel's network lock; it only keeps a lost answer from hanging a start for ever."""


class NetlinkError(OSError):
    """The kernel refused one message: `step` names it, `reason` is the kernel's own sentence (extended ACK) or
    empty."""

    def __init__(self, errno: int, step: str, reason: str) -> None:
        super().__init__(errno, os.strerror(errno))
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.step}: {self.strerror} [errno {self.errno}]" + (f" ({self.reason})" if self.reason else "")


class Channel:
    """One netlink socket, in the network namespace of the thread that makes it. Not thread-safe."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        # By option, not by settimeout(): Python's time-outs cost a poll(2) before each call.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TIMEOUT_SECONDS, 0))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, batch: bytes | bytearray, steps: Sequence[str], last: int) -> list[bytes]:
        """Send `batch` and wait for its outcome; returns the bodies of what it asked for, if anything.

        Args:
            batch: whole messages; the one with sequence number `last` asks for an acknowledgement.
            steps: what each message does; message number n (from 1) is ``steps[n - 1]``.
            last: sequence number after whose answer no further answer can come.

        Raises:
            NetlinkError: the first message that was refused (later ones often fail only because of it).
        """
        self._socket.send(batch)
        first: NetlinkError | None = None
        bodies = []
        while True:
            for kind, flags, sequence, body in messages(self._receive()):
                if kind != _NLMSG_ERROR:
                    bodies.append(body)
                    continue
                errno = -int(struct.unpack_from("=i", body)[0])
                if errno and first is None:
                    step = steps[sequence - 1] if 1 <= sequence <= len(steps) else "batch"
                    first = NetlinkError(errno, step, _reason(flags, body))
                if sequence == last:
                    if first is not None:
                        raise first
                    return bodies

    def dump(self, request: bytes, step: str) -> list[bytes]:
        """Send a request with NLM_F_DUMP and return the body of each answer.

        Raises:
            NetlinkError: refused; or EINTR, when what is listed kept changing while it was read.
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._socket.send(request)
            bodies: list[bytes] = []
            if self._read_dump(bodies, step):
                return bodies
        raise NetlinkError(EINTR, step, "the list kept changing while it was read")

    def _read_dump(self, bodies: list[bytes], step: str) -> bool:
        """Collect answers up to the end; False when they do not fit together (NLM_F_DUMP_INTR)."""
        consistent = True
        while True:
            for kind, flags, _, body in messages(self._receive()):
                consistent = consistent and not flags & _NLM_F_DUMP_INTR
                if kind == _NLMSG_DONE:
                    return consistent
                if kind == _NLMSG_ERROR:
                    raise NetlinkError(-int(struct.unpack_from("=i", body)[0]), step, _reason(flags, body))
                bodies.append(body)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError as error:
            self.close()  # an answer that comes after all must not be taken for that of a later batch
            raise TimeoutError(f"no answer from the kernel within {_TIMEOUT_SECONDS} s") from error


class Batch(Protocol):
    """What `send` needs of a template (`templates.Template`)."""

    @property
    def steps(self) -> tuple[str, ...]: ...
    @property
    def last(self) -> int: ...
    def fill(self, values: dict[str, bytes]) -> bytearray: ...


def send(channel: Channel, batch: Batch, values: dict[str, bytes]) -> None:
    """Fill a template and exchange it."""
    channel.exchange(batch.fill(values), batch.steps, batch.last)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split what one `recv` returned into (type, flags, sequence number, body)."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3


def attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs of a run of netlink attributes that starts at `offset`."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _reason(flags: int, body: bytes) -> str:
    """The kernel's sentence in an NLMSG_ERROR: after the errno and the (capped) header of the message it answers."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    for kind, payload in attributes(body, 4 + _HEADER.size):
        if kind == _NLMSGERR_ATTR_MSG:
            return payload.rstrip(b"\0").decode(errors="replace")
    return ""
