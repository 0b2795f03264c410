"""Signals by name and number, and whose word counts when an agent is stopped."""

from __future__ import annotations

import signal

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.spec.model import AgentSpec, Stop
from agentos_native.supervisor.signalling import signal_name, signal_number, stop_signal


def test_signals_by_name_and_number() -> None:
    assert signal_number("term") == signal_number("SIGTERM") == signal_number("15") == signal.SIGTERM
    assert signal_number("SIGRTMIN+3") == signal_number("rtmin+3") == signal.SIGRTMIN + 3
    assert signal_number("RTMAX-1") == signal.SIGRTMAX - 1
    for bad in ("", "0", "SIGNOPE", "-1", "999", "9" * 50, "RTMIN+99", "RTMAX-99", "TERM+1", "RTMIN+"):
        with pytest.raises(AgentosError, match="invalid-signal"):
            signal_number(bad)


def test_every_number_has_a_name_that_leads_back_to_it() -> None:
    for number in range(1, signal.NSIG):
        assert signal_number(signal_name(number)) == number


@pytest.mark.parametrize(
    ("own", "image", "expected"),
    [
        (None, "", signal.SIGTERM),
        (None, "SIGINT", signal.SIGINT),
        (None, "3", signal.SIGQUIT),
        (None, "SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("SIGTERM", "SIGINT", signal.SIGTERM),
        (None, "SIGWHATEVER", signal.SIGTERM),
    ],
)
def test_the_spec_s_signal_then_the_image_s(own: str | None, image: str, expected: int) -> None:
    spec = AgentSpec(name="a", image="i", stop=Stop(signal=own))
    assert stop_signal(spec, ImageConfig(stop_signal=image)) == expected


def test_an_image_that_cannot_be_read_keeps_nobody_from_stopping() -> None:
    assert stop_signal(AgentSpec(name="a", image="i"), None) == signal.SIGTERM
