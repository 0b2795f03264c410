"""The three phases: everybody busy, one agent at rest, a tenant arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentos_native.client import Client
from agentos_native.errors import AgentosError
from agentos_native.spec.documents import load_file
from agentos_native.spec.model import AgentSpec, TenantSpec
from demo import measure

TOLERANCE = 0.03
"""Of the machine: the largest difference between entitled and measured share, and the largest missed reservation."""
SETTLE_TICKS = 20
RESTING = "home/assistant"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """Shares are fractions of the machine; request and limit are in CPUs."""

    tenant: str
    agent: str
    type: str
    tier: str
    weight: int
    request: float
    limit: float | None
    entitled: float
    measured: float
    reservation_missed: float

    @property
    def difference(self) -> float:
        return self.measured - self.entitled

    @property
    def ok(self) -> bool:
        return abs(self.difference) <= TOLERANCE and self.reservation_missed <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        names = ("tenant", "agent", "type", "tier", "weight", "request", "limit", "entitled", "measured", "difference")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Phase:
    name: str
    rows: list[Row]
    others: float
    seconds: float

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "rows": [row.as_dict() for row in self.rows]}


@dataclass
class Home:
    """What has been applied so far, and where the kernel keeps account of it."""

    client: Client
    tenants: list[TenantSpec] = field(default_factory=list)
    agents: list[AgentSpec] = field(default_factory=list)
    resting: set[str] = field(default_factory=set)

    def apply(self, policy: Path) -> None:
        documents = load_file(policy)
        self.client.apply(documents)
        self.tenants += [d for d in documents if isinstance(d, TenantSpec)]
        self.agents += [d for d in documents if isinstance(d, AgentSpec)]

    def wait_running(self, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        for spec in self.agents:
            while (agent := self.client.agent(measure.key(spec))).state != "running":
                if time.monotonic() > deadline or agent.state in ("failed", "exited"):
                    raise AgentosError("demo", f"{measure.key(spec)} is {agent.state}, not running: {agent.reason}")
                time.sleep(0.2)

    def measured(self, name: str, seconds: float) -> Phase:
        """Let the loop settle, then account for `seconds`."""
        node = self.client.node()
        time.sleep(SETTLE_TICKS * node.tick_period)
        groups = {measure.key(spec): Path(self.client.agent(measure.key(spec)).cgroup) for spec in self.agents}
        sample = measure.window(seconds, Path(node.cgroup_root), groups)
        cpus = float(os.cpu_count() or 1)
        # A busy agent has a worker for each CPU; one at rest wants what it was seen to use.
        demand = {key: sample.agents[key] if key in self.resting else cpus for key in groups}
        available = min(sample.available, cpus)
        entitled = measure.entitlements(self.tenants, self.agents, demand, available)
        rows = [self._row(spec, entitled, sample.agents, demand, cpus) for spec in self.agents]
        return Phase(name, rows, 1 - available / cpus, sample.seconds)

    def _row(
        self, spec: AgentSpec, entitled: dict[str, float], used: dict[str, float], demand: dict[str, float], cpus: float
    ) -> Row:
        name = measure.key(spec)
        request, limit = spec.resources.requests.cpu / 1000, spec.resources.limits.cpu
        return Row(
            tenant=spec.tenant,
            agent=spec.name,
            type=spec.type,
            tier=spec.priority,
            weight=spec.weight,
            request=request,
            limit=None if limit is None else limit / 1000,
            entitled=entitled[name] / cpus,
            measured=used[name] / cpus,
            reservation_missed=max(min(request, demand[name]) - used[name], 0.0) / cpus,
        )


@contextmanager
def supervisor(command: list[str], folder: Path) -> Iterator[Client]:
    """A supervisor with state and socket in `folder`; at the end its agents are gone and so is it."""
    socket = folder / "agentos.sock"
    process = subprocess.Popen(
        [*command, "supervise", "--node", "demo", "--state-dir", folder / "state", "--socket", socket],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield _answering(Client(str(socket)), process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answering(client: Client, process: subprocess.Popen[bytes], seconds: float = 120.0) -> Client:
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.version()
            return client
        except AgentosError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def build_images(root: Path, command: list[str], client: Client) -> None:
    """From the Dockerfiles in rootfs/, as a user would."""
    for name in ("task-agent", "dialogue-agent", "learning-agent"):
        build = ["image", "build", "-q", "-t", name, "-f", root / "rootfs" / name / "Dockerfile", root / "rootfs"]
        subprocess.run([*command, "--socket", client.socket, *build], stdout=subprocess.DEVNULL, check=True)


def run(
    root: Path, command: list[str], image: Path, seconds: float, say: Say, show: Callable[[Phase], None] | None
) -> list[Phase]:
    """All phases, each shown as soon as it is measured."""
    phases: list[Phase] = []

    def measured(home: Home, name: str, what: str) -> None:
        say(f"{name}: {what}; settling, then measuring for {seconds:.0f} s")
        phases.append(home.measured(name, seconds))
        if show:
            show(phases[-1])

    with tempfile.TemporaryDirectory(prefix="agentos-demo-", dir="/var/tmp") as folder:
        say("starting a supervisor")
        with supervisor(command, Path(folder)) as client:
            say("importing the image python, building an image for each type of agent on it")
            client.import_image("python", str(image))
            build_images(root, command, client)
            home = Home(client)
            say("applying policies/smart-home.yaml")
            home.apply(root / "policies" / "smart-home.yaml")
            home.wait_running()
            measured(home, "all busy", "three tenants, eight agents, more demand than processors")
            client.kill(RESTING, "SIGUSR1")
            home.resting.add(RESTING)
            measured(home, "one idle", f"{RESTING} has gone to rest")
            home.apply(root / "policies" / "guests.yaml")
            home.wait_running()
            measured(home, "tenant arrives", "guests came, a tenant with two more agents")
            say("stopping everything")
    return phases
