"""RUN: a program of the stage as an agent like any other; its output is the build's, its files become a layer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from agentos_native.images.build.model import Run
from agentos_native.spec.model import AgentSpec, Limits, NetworkMode, Resources, Volume
from agentos_native.supervisor.agents import BUILD_LABEL, Agent
from agentos_native.supervisor.attaching import until_ended
from agentos_native.supervisor.building.feed import Feed, Output
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.wire.images import BuildRequest, ImageEvent

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are when the image does not say, as with docker."""
CAPABILITIES: Final = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"),
)
"""What installing software takes; all of it counts for the sandbox's own files and ids only."""


def spec_of(
    run: Run, request: BuildRequest, network: NetworkMode, name: tuple[str, int], image: str, caches: tuple[Volume, ...]
) -> AgentSpec:
    """The agent of one RUN. `name`: the build and the number of its step. `image`: the digest of the stage so far."""
    build, step = name
    return AgentSpec(
        name=f"build-{build}-{step}",
        tenant=request.tenant,
        image=image,
        labels={BUILD_LABEL: build},
        command=run.argv,
        env={"PATH": _PATH, **dict(run.env)},
        user=run.user or None,
        workdir=run.workdir or "/",
        hostname="build",
        network=network,
        capabilities=CAPABILITIES,
        resources=Resources(limits=limits_of(request)),
        volumes=caches,
    )


def limits_of(request: BuildRequest) -> Limits:
    """The bounds of each RUN. Raises ``invalid-quantity``."""
    from agentos_native.spec.quantities import parse_cpu, parse_memory

    return Limits(
        cpu=parse_cpu(request.cpu_limit) if request.cpu_limit else None,
        memory=parse_memory(request.memory_limit) if request.memory_limit else None,
    )


@contextlib.asynccontextmanager
async def ran(lifecycle: Lifecycle, spec: AgentSpec, step: int, feed: Feed, output: Output) -> AsyncIterator[Agent]:
    """The agent of `spec`, ended (or failed to start: its state says so), with its files; gone at the end.

    Raises:
        AgentosError: it could not be started.
    """
    agent = await lifecycle.create(spec, provisional=True)

    def resume() -> None:
        if agent.run is not None and agent.run.drain is not None:
            agent.run.drain.resume()

    agent.listeners.append(output)
    feed.on_room = resume
    try:
        await lifecycle.start(agent)
        if agent.record.state == "queued":
            feed.put(ImageEvent(kind="note", step=step, text=f"waits for room in tenant {spec.tenant}"))
        await until_ended(agent)
        output.finish()
        yield agent
    finally:
        feed.on_room = lambda: None
        agent.listeners.remove(output)
        await lifecycle.tasks.unbroken(lifecycle.remove(agent, force=True))
