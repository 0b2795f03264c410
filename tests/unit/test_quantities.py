"""Quantities: Kubernetes' grammar, exact or refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.spec import quantities as q


@pytest.mark.parametrize(
    ("text", "millis"),
    [("200m", 200), ("0.5", 500), ("2", 2000), ("1e3", 1_000_000), ("0", 0), (".25", 250), ("1.", 1000), ("+1", 1000)],
)
def test_cpu_is_read_as_millicores(text: str, millis: int) -> None:
    assert q.parse_cpu(text) == millis


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("64Mi", 64 * 2**20), ("1G", 10**9), ("1e3", 1000), ("1E", 10**18), ("1.5Gi", 3 * 2**29), ("12", 12)),
        *(("1k", 1000), ("1Ki", 1024), ("128974848000m", 128974848), ("9223372036854775807", 2**63 - 1), ("1E3", 1000)),
    ],
)
def test_memory_is_read_as_bytes(text: str, size: int) -> None:
    assert q.parse_memory(text) == size


REFUSED = (
    "-1",
    "1e309",
    "12Q",
    "",
    " ",
    "NaN",
    "nan",
    "inf",
    "1e",
    "1 2",
    "0x10",
    "1_000",
    "٣",
    "1Kib",
    "ki",
    "1K",
    "--1",
    ".",
    "1e-99",
)


@pytest.mark.parametrize("parse", [q.parse_cpu, q.parse_memory])
@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_quantity_is_refused(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(AgentosError) as caught:
        parse(text)
    assert caught.value.code == "invalid-quantity"
    assert caught.value.hint


@pytest.mark.parametrize(("text", "said"), [("0.5m", "finer than 1m"), ("1n", "finer"), ("1e10", "out of range")])
def test_cpu_is_never_rounded(text: str, said: str) -> None:
    with pytest.raises(AgentosError, match=said):
        q.parse_cpu(text)


def test_memory_in_thousandths_is_taken_for_the_slip_that_it_is() -> None:
    with pytest.raises(AgentosError) as caught:
        q.parse_memory("100m")
    assert "100Mi" in caught.value.hint


def test_memory_beyond_the_kernels_counter_is_refused() -> None:
    with pytest.raises(AgentosError, match="out of range"):
        q.parse_memory("9223372036854775808")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10.0),
        ("0.5", 0.5),
        ("1s", 1.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert q.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "1x", "s", "1s1m", "nan", "1e3", "9999999d", "1 s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(AgentosError) as caught:
        q.parse_duration(text)
    assert caught.value.code == "invalid-quantity"


@given(st.integers(0, q.MAX_CPU_MILLIS))
def test_cpu_round_trip(millis: int) -> None:
    assert q.parse_cpu(q.format_cpu(millis)) == millis


@given(st.integers(0, q.MAX_BYTES))
def test_memory_round_trip(size: int) -> None:
    assert q.parse_memory(q.format_memory(size)) == size


@given(st.floats(0, 1e8).map(lambda seconds: round(seconds, 6)))
def test_duration_round_trip(seconds: float) -> None:
    assert q.parse_duration(q.format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.text(max_size=30))
def test_a_quantity_is_exact_or_an_agentos_error(text: str) -> None:
    try:
        value = q.parse_quantity(text)
    except AgentosError:
        return
    assert isinstance(value, Fraction)
    assert value >= 0


def test_formats_are_the_shortest() -> None:
    assert q.format_cpu(2000) == "2"
    assert q.format_cpu(1500) == "1500m"
    assert q.format_memory(64 * 2**20) == "64Mi"
    assert q.format_memory(10**9) == "1G"
    assert q.format_memory(0) == "0"
    assert q.format_memory(1023) == "1023"
