"""The product's launcher and start stages without HTTP and registry: what ``tools/bench start`` calls "stages".

Theory of operation: a real launcher (``python -m agentos_native.launcher``) runs this module in place of the
supervisor. It opens the same doors as the supervisor does (image store, cgroup tree, network, user namespaces made
ahead) and drives the supervisor's own `Start`, the one that the API drives. It is told what to do by lines on its
standard input, as floor.c is; "request" is the moment before the agent's directory is made, "exec" the launcher's
`Running`. What an ended start leaves is removed while the next one begins, as in the supervisor, and the batch is over
when all of it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

from agentos_native.cgroup import Tree, discover
from agentos_native.images import ImageStore, resolve_user, volume_mount
from agentos_native.network import NodeNetwork, addresses
from agentos_native.spec.model import AgentSpec
from agentos_native.spec.settings import Settings
from agentos_native.supervisor import admission
from agentos_native.supervisor.agents import Agent, Agents
from agentos_native.supervisor.doors import Workers
from agentos_native.supervisor.host import Host, Units
from agentos_native.supervisor.launcher_link import LauncherLink
from agentos_native.supervisor.options import Options
from agentos_native.supervisor.registry import Record
from agentos_native.supervisor.starting import Start, empty_and_remove
from agentos_native.supervisor.userns import UsernsPool
from tools.benches.place import INITS, Place, cgroup2_mount, find_program
from tools.benches.programs import LineProgram

BLOCK: Final = 7
"""Not claimed: nothing of this benchmark is seen outside its namespaces."""
NODE: Final = "bench"
IMAGE: Final = "bench"
SPEC: Final = AgentSpec(
    name="start", image=IMAGE, command=("/bin/true",), allow_unenforced=("cpu", "memory", "pids", "io")
)
STAGES: Final = ("userns", "cgroup", "rootfs", "network", "logs", "sent", "cloned", "running")
"""Keys of an agent's timings, in the order in which they usually come; the fields after the two times of an answer."""
DONE_AT: Final = tuple(f"{stage} done at" for stage in STAGES)


def contender(here: Place) -> LineProgram:
    """The stages as a contender; its process is a launcher."""
    state, group = here.directory / "stages", here.cgroup / "stages"
    state.mkdir(mode=0o711)
    group.mkdir()
    base = f"/{group.relative_to(cgroup2_mount())}"
    driver = [sys.executable, "-m", "tools.benches.stages", str(state), base, str(here.image)]
    return LineProgram("stages", [sys.executable, "-m", "agentos_native.launcher", "--", *driver], "ao", DONE_AT)


class Driver:
    """Makes starts on request; on the event loop's thread."""

    def __init__(self, host: Host, digest: str) -> None:
        self._host = host
        self._digest = digest
        self._number = 0
        self._removals: set[asyncio.Task[None]] = set()

    async def batch(self, count: int, depth: int) -> str:
        """`count` starts, `depth` at a time; the answer's line."""
        begun = time.perf_counter()
        numbers = iter(range(count))
        results: list[list[float]] = []

        async def worker() -> None:
            for _ in numbers:
                results.append(await self._one())

        await asyncio.gather(*(worker() for _ in range(depth)))
        await asyncio.gather(*self._removals)
        wall = (time.perf_counter() - begun) * 1e6
        return " ".join([f"{wall:.1f}", *(",".join(f"{figure:.1f}" for figure in figures) for figures in results)])

    async def _one(self) -> list[float]:
        """One start; returns its microseconds: to exec, to the program's end, and to the end of each of `STAGES`."""
        host = self._host
        self._number += 1
        slot = host.userns.free_slot()
        record = Record(id=f"{self._number:012x}", slot=slot, spec=SPEC, image_digest=self._digest, created_at=0.0)
        agent = Agent(record)
        begun = time.perf_counter()
        host.agents.add(agent)
        os.mkdir(host.options.agent_dir(agent.id), 0o700)
        agent.run = await Start(host, agent).go(lambda run: None)
        executed = time.perf_counter()
        host.userns.refill()
        ending = await agent.run.ended
        if ending.status != 0:
            raise RuntimeError(f"the program ended with {ending}")
        ended = time.perf_counter()
        host.link.acknowledge(cast(int, ending.exit_id))
        removal = asyncio.create_task(self._remove(agent))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        stages = [agent.timings.get(stage, 0.0) * 1e3 for stage in STAGES]
        return [(executed - begun) * 1e6, (ended - begun) * 1e6, *stages]

    async def _remove(self, agent: Agent) -> None:
        run = agent.run
        assert run is not None
        await self._host.workers.call(self._release, agent)
        run.close()
        self._host.agents.remove(agent)

    def _release(self, agent: Agent) -> None:
        """In a worker thread."""
        assert agent.run is not None
        self._host.network.retire(agent.record.slot)
        empty_and_remove(agent.run.group)
        directory = Path(self._host.options.agent_dir(agent.id))
        self._host.images.release(directory)
        shutil.rmtree(directory, ignore_errors=True)


async def open_host(state: str, base: str, image: Path) -> tuple[Host, str]:
    """What the supervisor's `app` opens for starts, and the image's digest; everything else is absent."""
    options = Options(settings=Settings(node=NODE, state_dir=state, cgroup_root=base))
    os.makedirs(os.path.join(state, "agents"), exist_ok=True)
    groups, network, images = Tree(discover(), NODE, base), NodeNetwork(NODE, BLOCK), ImageStore(Path(state))
    groups.open()
    network.open()
    digest = images.import_(IMAGE, image).digest
    agents = Agents()
    link = LauncherLink(int(os.environ["AGENTOS_LAUNCHER_FD"]), sys.exit)
    units = Units(link.acknowledge)
    link.on_exit = units.exited
    await link.replay.complete.wait()
    absent = cast(Any, None)
    host = Host(
        options=options, block=BLOCK, capacity=admission.node_capacity(), controllers=groups.controllers,
        init_fd=os.open(find_program(*INITS), os.O_RDONLY | os.O_CLOEXEC), registry=absent, agents=agents,
        events=absent, workers=Workers(), link=link, units=units,
        userns=UsernsPool(link.make_userns, BLOCK, agents.slots, unready=network.retiring),
        images=images, groups=groups, network=network, shares=absent, addresses=addresses, resolve_user=resolve_user,
        volume=volume_mount,
    )  # fmt: skip
    return host, digest


async def serve(state: str, base: str, image: Path) -> None:
    """Answer lines until standard input ends; then take everything down and let the launcher go."""
    host, digest = await open_host(state, base, image)
    gc.freeze()  # as the supervisor does
    driver = Driver(host, digest)
    host.userns.refill()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        count, depth = (int(word) for word in line.split())
        print(await driver.batch(count, depth), flush=True)
    await host.userns.close()
    host.workers.close()
    cast(NodeNetwork, host.network).teardown()
    await host.link.shutdown(0)


def main() -> None:
    """``python -m tools.benches.stages STATE CGROUP-BASE IMAGE``, started by a launcher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state")
    parser.add_argument("base")
    parser.add_argument("image", type=Path)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):  # whoever was interrupted says so and takes everything away
        asyncio.run(serve(options.state, options.base, options.image))


if __name__ == "__main__":
    main()
