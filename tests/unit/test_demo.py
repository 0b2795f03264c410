"""The demo's own arithmetic: what its policy entitles everybody to, worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentos_native.spec.documents import load_file
from agentos_native.spec.model import AgentSpec, TenantSpec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "lib"))

from demo import measure, phases  # type: ignore  # noqa: E402


def entitled(policies: list[str], demand: dict[str, float], capacity: float) -> dict[str, float]:
    documents = [document for name in policies for document in load_file(str(ROOT / "policies" / name))]
    tenants = [d for d in documents if isinstance(d, TenantSpec)]
    agents = [d for d in documents if isinstance(d, AgentSpec)]
    wanted = {measure.key(a): demand.get(measure.key(a), 2.0) for a in agents}
    shares: dict[str, float] = measure.entitlements(tenants, agents, wanted, capacity)
    return shares


def test_everybody_busy() -> None:
    shares = entitled(["smart-home.yaml"], {}, 2.0)
    # home has half of the machine: 0.3 to the limited high tier, 0.15 reserved for habits, the rest 2 : 1
    assert shares["home/thermostat"] == pytest.approx(0.3)
    assert shares["home/habits"] == pytest.approx(0.15)
    assert shares["home/assistant"] == pytest.approx(0.55 * 2 / 3)
    assert shares["home/cleaner"] == pytest.approx(0.55 / 3)
    assert shares["media/recommender"] == pytest.approx(0.375)
    assert shares["media/narrator"] == pytest.approx(0.125)
    # security/cameras would have a sixth of 0.5 by weight; its reservation lifts it
    assert shares["security/cameras"] == pytest.approx(0.3)
    assert shares["security/listener"] == pytest.approx(0.2)


def test_one_at_rest_leaves_its_share_to_its_own_tenant() -> None:
    before, after = entitled(["smart-home.yaml"], {}, 2.0), entitled(["smart-home.yaml"], {phases.RESTING: 0.0}, 2.0)
    assert after["home/cleaner"] == pytest.approx(0.55)
    assert after["media/recommender"] == pytest.approx(before["media/recommender"])


def test_a_tenant_that_arrives_takes_by_weight_from_all() -> None:
    shares = entitled(["smart-home.yaml", "guests.yaml"], {phases.RESTING: 0.0}, 1.8)
    assert shares["guests/concierge"] + shares["guests/tour-planner"] == pytest.approx(0.6)
    assert shares["media/recommender"] == pytest.approx(0.225)
    assert shares["security/cameras"] == pytest.approx(0.3)
    assert sum(shares.values()) == pytest.approx(1.8)


def test_the_demo_has_what_it_promises() -> None:
    documents = load_file(str(ROOT / "policies" / "smart-home.yaml"))
    agents = [d for d in documents if isinstance(d, AgentSpec)]
    assert len([d for d in documents if isinstance(d, TenantSpec)]) == 3
    assert len(agents) == 8
    assert {a.type for a in agents} == {"task", "dialogue", "learning"}
    assert len([a for a in agents if a.resources.requests.cpu]) == 2


def test_a_missed_reservation_fails_a_row_even_where_the_difference_is_small() -> None:
    row = phases.Row("t", "a", "task", "normal", 100, 0.3, None, 0.15, 0.13, reservation_missed=0.04)
    assert not row.ok
    assert phases.Row("t", "a", "task", "normal", 100, 0.3, None, 0.15, 0.13, reservation_missed=0.02).ok
