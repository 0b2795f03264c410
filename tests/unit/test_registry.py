"""The registry: what is written is read again, what is corrupt is moved aside, what is newer is left alone."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, Requests, Resources, Restart, TenantSpec
from agentos_native.supervisor.registry import Record, Registry, decode_record, encode_record, open_or_move_aside


def record(name: str, slot: int, **fields: object) -> Record:
    spec = AgentSpec(
        name=name, image="box", resources=Resources(requests=Requests(cpu=200)), restart=Restart(policy="always")
    )
    base = {"id": f"{slot:012x}", "slot": slot, "spec": spec, "image_digest": "sha256:0", "created_at": 1.5}
    return Record(**{**base, **fields})  # type: ignore[arg-type]


def test_records_tenants_and_values_survive(tmp_path: Path) -> None:
    path = str(tmp_path / "r.db")
    first = Registry(path)
    made = record("a", 3, state="running", pid=17, warnings=["w"], started_at=2.0)
    first.save(made)
    first.save(record("b", 4))
    made.exit_status, made.state = 0, "exited"
    first.save(made)
    first.forget("000000000004")
    first.save_tenant(TenantSpec(name="home", weight=200))
    first.put("block", "7")
    first.put("block", "8")
    first.close()
    second = Registry(path)
    assert second.agents() == [made]
    assert second.tenants() == [TenantSpec(name="home", weight=200)]
    assert (second.get("block"), second.get("nothing")) == ("8", None)
    second.forget_tenant("home")
    assert second.tenants() == []
    second.close()


def test_a_dead_writer_loses_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "r.db")
    child = os.fork()
    if child == 0:
        registry = Registry(path)
        registry.save(record("a", 1))
        os._exit(0)  # neither closed nor checkpointed
    os.waitpid(child, 0)
    registry = Registry(path)
    assert [found.spec.name for found in registry.agents()] == ["a"]
    registry.close()


def test_names_and_slots_are_unique(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "r.db"))
    registry.save(record("a", 1))
    for other in (record("a", 2), record("b", 1, id="f" * 12)):
        with pytest.raises(sqlite3.IntegrityError):
            registry.save(other)
    registry.close()


def test_a_record_is_its_json(tmp_path: Path) -> None:
    made = record("a", 1, unenforced=["memory"], wanted=True, provisional=True)
    assert decode_record(encode_record(made)) == made


def corrupt_header(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def corrupt_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def corrupt_record(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE agents SET record = ?", (b'{"id": 5}',))
    database.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [corrupt_header, corrupt_page, corrupt_record, cut])
def test_a_corrupt_registry_is_moved_aside(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "r.db"
    registry = Registry(str(path))
    registry.save(record("a", 1))
    registry.close()
    assert callable(damage)
    damage(path)
    broken = path.read_bytes()
    fresh, aside = open_or_move_aside(str(path))
    assert aside is not None
    assert Path(aside).read_bytes() == broken
    assert fresh.agents() == []
    fresh.save(record("b", 1))
    fresh.close()
    again, aside = open_or_move_aside(str(path))
    assert aside is None
    assert [found.spec.name for found in again.agents()] == ["b"]
    again.close()


def test_a_newer_registry_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    Registry(str(path)).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(AgentosError) as caught:
        open_or_move_aside(str(path))
    assert caught.value.code == "registry-version"
    assert [entry.name for entry in tmp_path.iterdir() if "corrupt" in entry.name] == []


def test_a_registry_in_use_is_not_corrupt(tmp_path: Path) -> None:
    path = str(tmp_path / "r.db")
    first = Registry(path)
    first.save(record("a", 1))
    with pytest.raises(AgentosError) as caught:
        open_or_move_aside(path)
    assert caught.value.code == "registry"
    first.close()
    again, aside = open_or_move_aside(path)
    assert (len(again.agents()), aside) == (1, None)
    again.close()
