"""Messages about rates: patched bytes against pyroute2's, what the kernel answers, and how buckets are sized."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.network import addressing, encode_rates, failures, shaping, templates
from agentos_native.network.encode import Values
from agentos_native.network.netlink import NetlinkError

RATES = st.integers(1, 10**12)
VALUES = Values.of(addressing.addresses(1, 7), "0" * 12, 3)


@pytest.fixture(scope="module")
def made() -> templates.RateTemplates:
    return templates.RateTemplates()


@given(rate=RATES, index=st.sampled_from([addressing.AGENT_IFINDEX, VALUES.ifindex]))
def test_patched_bytes_equal_fresh_ones(made: templates.RateTemplates, rate: int, index: int) -> None:
    wanted, burst, queue = shaping.shape(rate)
    values = replace(VALUES, ifindex=index, rate=wanted, burst=burst, queue=queue)
    patched = made.set_rate.fill(templates.rate_fields(index, wanted, burst, queue))
    assert patched == templates.number(encode_rates.set_rate(values))
    assert made.drop_rate.fill(templates.rate_fields(index)) == templates.number(encode_rates.drop_rate(values))


def test_the_batches_hold_the_fields_they_depend_on(made: templates.RateTemplates) -> None:
    assert {name for name, _ in made.set_rate.holes} == {"ifindex", "rate", "burst", "queue"}
    assert len(made.set_rate.holes) == 4
    assert {name for name, _ in made.drop_rate.holes} == {"ifindex"}
    assert made.list_queues.holes == made.list_counters.holes == ()


@given(RATES)
def test_a_bucket_takes_a_packet_and_a_queue_takes_a_bucket(rate: int) -> None:
    wanted, burst, queue = shaping.shape(rate)
    assert max(rate - 7, 1) <= max(wanted * 8, 1) <= max(rate, 8)
    assert 45 * 1514 < shaping.LEAST_BURST <= burst <= queue < 2**32


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def discipline(kind: bytes, handle: int, parent: int, rate: int, rate64: int | None) -> bytes:
    parms = struct.pack("=BBHhHI", 0, 1, 0, -1, 0, rate) + bytes(24)
    options = attribute(1, parms) + (attribute(4, struct.pack("=Q", rate64)) if rate64 is not None else b"")
    stats = attribute(1, bytes(16)) + attribute(3, struct.pack("=5I", 2, 3028, 17, 0, 99))
    header = struct.pack("=BxxxiIII", 0, 2, handle, parent, 0)
    return header + attribute(1, kind + b"\0") + attribute(2, options) + attribute(7, stats)


@pytest.mark.parametrize(
    ("kind", "handle", "rate", "rate64", "expected"),
    [
        (b"tbf", encode_rates.HANDLE, 1_250_000, None, 10_000_000),
        (b"tbf", encode_rates.HANDLE, 2**32 - 1, 12_500_000_000, 100_000_000_000),
        (b"tbf", 0x10000, 1_250_000, None, None),
        (b"htb", encode_rates.HANDLE, 0, None, None),
    ],
)
def test_what_the_kernel_lists_is_read(
    kind: bytes, handle: int, rate: int, rate64: int | None, expected: int | None
) -> None:
    body = discipline(kind, handle, encode_rates.ROOT, rate, rate64)
    assert shaping._queue(body) == (2, shaping.Queue(expected, 3028, 17, 99))
    assert shaping._queue(discipline(kind, handle, 0x616F0001, rate, rate64)) is None
    assert shaping._queue(discipline(b"noqueue", 0, encode_rates.ROOT, rate, rate64)) is None


def test_a_kernel_without_buckets_is_told_with_its_remedy() -> None:
    error = failures.failure("rates", NetlinkError(errno.ENOENT, "set the rate", ""), "agent x")
    assert "modprobe sch_tbf" in error.hint
    assert error.details == {"stage": "rates", "step": "set the rate", "errno": errno.ENOENT}
