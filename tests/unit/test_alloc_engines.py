"""The engine has a name at any time, and by that name what it computed is computed anew bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from agentos_native.alloc import compiled_drf, drf, engines
from agentos_native.alloc.waterfill import Floats
from agentos_native.errors import AgentosError
from agentos_native.recording import replay


@pytest.fixture(autouse=True)
def _numpy_again() -> Iterator[None]:
    engines.use_numpy()
    yield
    engines.use_numpy()


def filled() -> Floats:
    """A division by ``drf`` by the engine in use."""
    random = np.random.default_rng(4)
    usage = np.asfortranarray(random.random((50, 3)))
    weights, floors, starts = random.uniform(1, 9, 50), np.zeros(50), np.array([0, 20, 50])
    return engines.drf_fill(weights, usage, floors, random.random(50), starts, np.ones(3)).scales


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The kernels of ``drf`` are compiled once this is set."""
    opened = threading.Event()

    def slowly() -> engines.DrfFill:
        assert opened.wait(60)
        return compiled_drf.fill

    monkeypatch.setattr(engines, "_compiled_drf", slowly)
    return opened


def test_while_the_kernels_of_drf_are_compiled_the_engine_is_mixed(gate: threading.Event) -> None:
    by_numpy = filled()
    engines.use_numpy()
    assert engines.load_compiled()
    assert engines.engine() == "numba"
    try:
        assert filled().tobytes() == by_numpy.tobytes()
        assert engines.engine() == "mixed"
        assert filled().tobytes() == by_numpy.tobytes()
        loader = engines._Choice.loader
    finally:
        gate.set()
    assert loader is not None
    loader.join(60)
    assert engines.engine() == "numba"
    assert engines._Choice.now.drf_fill is compiled_drf.fill


def test_drf_that_was_asked_for_before_is_compiled_with_the_rest(gate: threading.Event) -> None:
    filled()
    assert engines.engine() == "numpy"
    gate.set()
    assert engines.load_compiled()
    assert engines.engine() == "numba"
    assert engines._Choice.now.drf_fill is compiled_drf.fill


@pytest.mark.parametrize("name", ["numpy", "numba", "mixed"])
def test_an_engine_is_used_by_its_name_and_stays(name: str) -> None:
    replay.use(name)
    filled()
    assert engines.engine() == name
    assert engines._Choice.loader is None
    assert (engines._Choice.now.drf_fill is drf.fill) is (name != "numba")


def test_an_engine_that_nobody_knows() -> None:
    with pytest.raises(AgentosError) as caught:
        replay.use("abacus")
    assert caught.value.code == "no-engine"
    assert engines.engine() == "numpy"
