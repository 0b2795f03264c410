"""``set``, what-if and explanations against a real supervisor with real agents; no controllers needed.

What the kernel's files then hold is tests/vm/test_set.py's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from agentos_native.client import Client
from tests.kernel.test_cli import Machine, code_of
from tests.sandboxes import busybox_rootfs, cgroup2_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ANYHOW = ("--allow-unenforced", "cpu,memory,pids,io")
LOOPS = f"for i in $(seq {os.cpu_count()}); do while :; do :; done & done; wait"
"""Wants all of the machine, however many processors it has: only then do weights say anything."""
BUSY = ("box", "sh", "-c", LOOPS)
DOCUMENTS = f"""
apiVersion: agentos/v1
kind: Agent
metadata: {{name: one, tenant: home}}
spec: {{image: box, command: [sh, -c, '{LOOPS}'], weight: 300, allowUnenforced: [cpu, memory, pids, io]}}
---
apiVersion: agentos/v1
kind: Agent
metadata: {{name: three, tenant: work}}
spec: {{image: box, command: [sleep, '60']}}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("set")
    made = Machine(directory, cgroup2_mount() / f"set-test-{os.getpid()}", "set-test")
    rootfs = busybox_rootfs(directory / "rootfs")
    with made.supervised():
        assert made("image", "import", "box", str(rootfs)).returncode == 0
        for name in ("one", "two"):
            done = made("run", "-d", "--name", name, "--tenant", "home", *ANYHOW, *BUSY)
            assert done.returncode == 0, done.stderr
        yield made


def share(machine: Machine, name: str) -> float:
    return float({row["name"]: row["entitled"] for row in machine.json("alloc", "show")["rows"]}[name])


def equal_shares(machine: Machine) -> None:
    """Wait until both agents have been seen to want more than they get, and are given the same."""
    deadline = time.monotonic() + 60
    while True:
        rows = {row["name"]: row for row in machine.json("alloc", "show")["rows"]}
        one, two = rows["one"]["entitled"], rows["two"]["entitled"]
        if one > 0.0 and two > 0.0 and 0.8 <= one / two <= 1.25:
            return
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)


def eventually(machine: Machine, name: str, least: float, most: float) -> None:
    deadline = time.monotonic() + 30
    while not least <= share(machine, name) <= most:
        assert time.monotonic() < deadline, machine.json("alloc", "show")
        time.sleep(0.2)


def test_a_change_is_rehearsed_and_done_and_kept(machine: Machine) -> None:
    equal_shares(machine)
    rehearsed = machine("set", "home/one", "--weight", "300", "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert rehearsed.stdout.splitlines()[:2] == ["home/one updated (dry run)", "  weight: 100 → 300"]
    assert "demand measured lately" in rehearsed.stdout
    (row,) = machine.json("set", "home/one", "--weight", "300")
    effects = {effect["name"]: effect for effect in row["result"]["effects"] if effect["resource"] == "cpu"}
    assert effects["one"]["after"] > effects["one"]["before"]
    assert effects["two"]["after"] < effects["two"]["before"]
    eventually(machine, "one", 2.0 * effects["two"]["after"], 64.0)
    assert machine.json("inspect", "one")["weight"] == 300
    assert machine("set", "one", "--weight", "300").stdout == "one unchanged\n"
    both = machine("set", "one", "two", "--weight", "100").stdout.splitlines()
    assert both == ["one updated", "  weight: 300 → 100", "two unchanged"]


def test_refusals_change_nothing(machine: Machine) -> None:
    before = machine.json("inspect", "one")["spec"]
    assert code_of(machine("set", "one", "--priority", "high")) == "not-live"
    assert code_of(machine("set", "one", "--cpu-request", "9000")) == "reservation-too-large"
    assert code_of(machine("set", "one", "--weight", "0")) == "out-of-range"
    assert code_of(machine("set", "nobody", "--weight", "1")) == "agent-not-found"
    assert code_of(machine("tenant", "set", "nobody", "--weight", "1")) == "tenant-not-found"
    assert machine.json("inspect", "one")["spec"] == before


def test_a_stopped_agent_is_changed_for_its_next_start(machine: Machine) -> None:
    assert machine("run", "-d", "--name", "brief", "box", "sleep", "60").returncode == 0
    assert machine("stop", "-t", "0", "brief").returncode == 0
    assert machine("set", "brief", "--timeout", "300ms").returncode == 0
    assert machine("start", "brief").returncode == 0
    assert machine("wait", "brief").stdout == "124\n"
    assert machine("rm", "brief").returncode == 0


def test_a_running_agent_gets_a_timeout(machine: Machine) -> None:
    assert machine("run", "-d", "--name", "long", "box", "sleep", "60").returncode == 0
    assert machine("set", "long", "--timeout", "100ms", "--stop-grace", "0").returncode == 0
    assert machine("wait", "long").stdout == "124\n"
    assert machine("rm", "long").returncode == 0


def test_a_tenant_is_changed(machine: Machine) -> None:
    (row,) = machine.json("tenant", "set", "home", "--weight", "250", "--agents-limit", "9", "--policy", "utility")
    assert row["result"]["changed"]["policy"] == [None, "utility"]
    assert machine.json("tenant", "inspect", "home")["weight"] == 250
    said = machine("alloc", "explain", "home/one").stdout
    assert "policy utility" in said
    assert machine("tenant", "set", "home", "--policy", "none", "--agents-limit", "none").returncode == 0


def test_apply_rehearses_with_effects(machine: Machine) -> None:
    document = machine.directory / "d.yaml"
    document.write_text(DOCUMENTS)
    answer = machine.json("apply", "-f", str(document), "--dry-run")
    assert {result["name"]: result["action"] for result in answer["results"]} == {"one": "updated", "three": "created"}
    moved = {(effect["tenant"], effect["name"]): effect for effect in answer["effects"]}
    assert moved["work", "three"]["before"] == 0.0
    assert moved["work", "three"]["after"] > 0.02
    assert moved["home", "two"]["after"] < moved["home", "two"]["before"]
    assert "three" not in {agent["name"] for agent in machine.json("ps", "-a")}


def test_explanations(machine: Machine) -> None:
    done = machine("alloc", "explain", "home/one")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("one is entitled to ")
    assert len(lines) < 40
    verbose = machine("alloc", "explain", "home/one", "--verbose").stdout
    assert verbose.startswith(done.stdout.splitlines()[0][:20])
    assert "Derivation" in verbose
    assert "clip(" in verbose
    said = machine.json("alloc", "explain", "home/one")
    level = said["derivation"]["agents"]
    assert sum(member["share"] for member in level["members"]) == pytest.approx(level["budget"])
    assert {remedy["target"] for remedy in said["remedies"]} == {"agent", "tenant"}
    assert Client(str(machine.directory / "s.sock")).explain("home/one")["name"] == "one"
    assert {row["resource"] for row in machine.json("alloc", "show", "--resource", "all")["rows"]} >= {"cpu"}
    assert machine("alloc", "show", "-r", "all").returncode == 0
    assert machine("top", "--once").returncode == 0


def test_a_queued_agent_is_explained_and_let_in_by_a_change(machine: Machine) -> None:
    capacity = machine.json("tenant", "ls") and Client(str(machine.directory / "s.sock")).node().cpu.capacity
    assert machine("set", "home/one", "--cpu-request", f"{capacity - 500}m").returncode == 0
    done = machine("run", "-d", "--name", "late", *ANYHOW, "--cpu-request", "800m", "box", "sleep", "60")
    assert done.returncode == 0, done.stderr
    assert {agent["name"]: agent["state"] for agent in machine.json("ps")}["late"] == "queued"
    said = machine("alloc", "explain", "late").stdout
    assert "waits for its start" in said
    assert "agentos-native set default/late --cpu-request 500m" in said
    assert "home/one" in said
    assert machine("set", "home/one", "--cpu-request", "none").returncode == 0
    deadline = time.monotonic() + 20
    while machine.json("inspect", "late")["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert machine("rm", "-f", "late").returncode == 0
