"""``set`` on a real kernel: files hold what was asked for, shares follow within seconds, refusals leave all as it was.

One supervisor, as users have it. Each agent has a thread for every CPU: a weight counts among those that share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec
from tests.kernel.test_cli import Machine
from tests.sandboxes import busybox_rootfs, cgroup2_mount

BUSY = ("sh", "-c", "(while :; do :; done) & while :; do :; done")
NAMES = ("one", "two")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("set")
    made = Machine(directory, cgroup2_mount() / "set-vm", "set-vm")
    rootfs = busybox_rootfs(directory / "rootfs")
    with made.supervised():
        client = Client(str(directory / "s.sock"))
        client.import_image("box", str(rootfs))
        for name in NAMES:
            client.run(AgentSpec(name=name, tenant="home", image="box", command=BUSY))
        yield made


@pytest.fixture
def client(machine: Machine) -> Client:
    return Client(str(machine.directory / "s.sock"))


def group(client: Client, name: str) -> Path:
    return Path(client.agent(name).cgroup)


def limits(**values: Any) -> dict[str, Any]:
    return {"resources": {"limits": values}}


def requests(**values: Any) -> dict[str, Any]:
    return {"resources": {"requests": values}}


def settled(client: Client, seconds: float, fits: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """What was `used` in the first window that `fits`, or in the last of three: trims take some seconds."""
    for _ in range(3):
        shares = used(client, seconds)
        if fits(shares):
            break
    return shares


def used(client: Client, seconds: float) -> dict[str, float]:
    """CPUs that each agent had in the next seconds, as the kernel counts them."""

    def counters() -> dict[str, float]:
        found = {}
        for name, path in groups.items():
            fields = (path / "cpu.stat").read_text().split()
            found[name] = float(fields[fields.index("usage_usec") + 1]) / 1e6
        return found

    groups = {name: group(client, name) for name in NAMES}
    before, began = counters(), time.monotonic()
    time.sleep(seconds)
    window = time.monotonic() - began
    shares = {name: (now - before[name]) / window for name, now in counters().items()}
    print(shares)  # seen with -s, and when a test fails
    return shares


@pytest.mark.parametrize(
    ("given", "taken", "file", "expected", "default"),
    [
        (limits(memory="256Mi"), limits(memory=None), "memory.max", str(256 << 20), "max"),
        (requests(memory="16Mi"), requests(memory=None), "memory.low", str(16 << 20), "0"),
        (limits(pids=33), limits(pids=None), "pids.max", "33", "max"),
        (limits(cpu="1500m"), limits(cpu=None), "cpu.max", "150000 100000", "max 100000"),
    ],
)
def test_each_value_reaches_its_file(
    client: Client, given: dict[str, Any], taken: dict[str, Any], file: str, expected: str, default: str
) -> None:
    path = group(client, "two") / file
    client.change("two", given)
    assert path.read_text().strip() == expected
    client.change("two", taken)
    assert path.read_text().strip() == default


def test_what_is_refused_leaves_all_files(client: Client) -> None:
    path = group(client, "two")
    names = ("cpu.max", "memory.max", "memory.low", "pids.max")
    before = {name: (path / name).read_text() for name in names}
    for code, patch in (
        ("reservation-too-large", {"resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "64"}}}),
        ("not-live", {"priority": "high", **limits(pids=9)}),
    ):
        with pytest.raises(AgentosError) as caught:
            client.change("two", patch)
        assert caught.value.code == code
    assert {name: (path / name).read_text() for name in names} == before


def test_a_tenants_limit_reaches_its_file(client: Client) -> None:
    path = group(client, "two").parent.parent / "cpu.max"
    client.change_tenant("home", {"limits": {"cpu": "1"}})
    assert path.read_text().strip() == "100000 100000"
    client.change_tenant("home", {"limits": {"cpu": None}})
    assert path.read_text().strip() == "max 100000"


def test_a_weight_takes_effect_at_once(client: Client) -> None:
    client.change("one", {"weight": 100})
    time.sleep(2)
    shares = settled(client, 5.0, lambda shares: 0.8 < shares["one"] / shares["two"] < 1.25)
    assert 0.8 < shares["one"] / shares["two"] < 1.25
    effects = client.change("one", {"weight": 300}).effects
    foreseen = {effect.name: effect.after for effect in effects if effect.resource == "cpu"}
    assert foreseen["one"] / foreseen["two"] == pytest.approx(3.0, rel=0.05)
    time.sleep(1.0)
    shares = settled(client, 5.0, lambda shares: 2.4 < shares["one"] / shares["two"] < 3.7)
    assert 2.4 < shares["one"] / shares["two"] < 3.7


def test_a_reservation_lifts_a_light_agent(client: Client) -> None:
    """The kernel's weight is the tick's, also after an update has written the group's settings."""
    client.change("one", {"weight": 20, **requests(cpu="700m")})
    time.sleep(3)
    shares = settled(client, 6.0, lambda shares: shares["one"] > 0.7 - 0.06)
    assert shares["one"] > 0.7 - 0.06
    said = client.explain("home/one")
    assert said["bound"] == "request"
    assert said["kernel_weight"] == pytest.approx(said["derivation"]["kernel"]["due"], rel=0.06)
    assert int((group(client, "one") / "cpu.weight").read_text()) > 20
    client.change("one", {"weight": None, "resources": {"requests": {"cpu": None}, "limits": {"cpu": "200m"}}})
    time.sleep(2)
    limited = pytest.approx(0.2, abs=0.03)
    assert settled(client, 4.0, lambda shares: shares["one"] == limited)["one"] == limited
