"""One start, stage by stage; each stage leaves its undo on a stack, so that a failed start takes all back.

    user namespace ─ cgroup (group, leaf) ─ image (files, overlay, volumes) ─ network (netns, veth, rules)
                   ─ output pipes ─ launcher: clone … exec

From cgroup to network it is one worker thread that does all: side by side the stages would wait for each other at every
system call (they are short, and the interpreter's lock is handed over by waking a thread), and it is other starts that
use the other processors. What they give is file descriptors only. The packet to the launcher duplicates them
(SCM_RIGHTS), so this process closes its own when the start is over. A failure after the packet has gone is undone by
killing the cgroup.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images.model import Image
from agentos_native.images.rootfs import Workdir
from agentos_native.images.users import User
from agentos_native.sandbox.hints import failure_to_error
from agentos_native.supervisor import admission, guestfiles, program, resources, stdio
from agentos_native.supervisor.agents import Agent, Run
from agentos_native.supervisor.doors import Group
from agentos_native.supervisor.drain import Drain
from agentos_native.supervisor.host import Host
from agentos_native.supervisor.launcher_link import CloneError, CloneRequest
from agentos_native.supervisor.logs import LogWriter
from agentos_native.supervisor.moving import shift_owners
from agentos_native.supervisor.undo import UndoStack

_ANSWER_WITHIN = 10.0
"""Seconds that the launcher is given to answer a request which is not wanted any more."""


class Rootfs(NamedTuple):
    """What the file systems' stage gives: mount fds, the cgroup's leaf, what of the program depends on the image."""

    image: Image
    mount_fd: int
    leaf: int
    user: User
    volumes: list[int]


class Start:
    """One attempt to start `agent`; use once. The agent's lock is the caller's business."""

    def __init__(self, host: Host, agent: Agent) -> None:
        self._host = host
        self._agent = agent
        self._spec = agent.record.spec
        self._dir = host.options.agent_dir(agent.id)
        self._id_base = admission.id_base(host.block, agent.record.slot)
        self._undo = UndoStack()
        self._fds: list[int] = []
        self._pipes = stdio.Stdio()
        self._began = time.monotonic()
        agent.timings = {}

    async def go(self, keep: Callable[[Run], object]) -> Run:
        """Run every stage.

        Args:
            keep: makes the run known; when it fails, the start has failed.

        Raises:
            AgentosError: a stage failed and everything before it is undone (what could not be is in its details).
        """
        try:
            run = await self._stages()
            keep(run)
        except BaseException as error:
            leftovers = await self._undo.unwind()
            failure = failure_to_error(error.failure, self._agent.where) if isinstance(error, CloneError) else error
            if leftovers and isinstance(failure, AgentosError):
                failure.details["not-undone"] = leftovers
            if failure is error:
                raise
            raise failure from error
        finally:
            self._pipes.close()
            for fd in self._fds:
                os.close(fd)
        self._undo.commit()
        return run

    def _own(self, fd: int) -> int:
        """To be closed when the start is over, however it ends."""
        self._fds.append(fd)
        return fd

    def _passed(self, fault: str, stage: str) -> None:
        faults.point(fault)
        self._agent.timings[stage] = round((time.monotonic() - self._began) * 1000, 3)

    async def _stages(self) -> Run:
        userns = self._own(await self._host.userns.take(self._agent.record.slot))
        self._passed("userns.made", "userns")
        group, rootfs, netns = await self._host.workers.call(self._prepare, userns)
        log, output = self._open_output(rootfs.user)
        self._passed("logs.opened", "logs")
        handles = program.Handles(
            rootfs=rootfs.mount_fd,
            netns=netns,
            userns=userns,
            init=self._host.init_fd,
            leaf=rootfs.leaf,
            stdio=tuple(self._pipes.agent),
            volumes=tuple(rootfs.volumes),
        )
        plan = program.start_program(self._agent.record, rootfs.image.config, rootfs.user, self._id_base, handles)
        ended = self._host.units.expect(self._agent.id)
        self._undo.push("unit", partial(self._forget, self._agent.id))
        request = self._host.link.clone(
            self._agent.id, plan.encode(), namespaces=plan.namespaces, fds=plan.fds, cgroup=plan.cgroup
        )
        self._undo.push("clone", partial(self._withdraw, request, group))
        self._passed("launch.sent", "sent")
        run = await self._launched(request, group, ended)
        run.log, run.drain, run.stdin_fd = log, output, self._pipes.take_input()
        if run.tty_fd >= 0:
            output.add(os.dup(run.tty_fd), "stdout")
        return run

    async def _launched(self, request: CloneRequest, group: Group, ended: asyncio.Future[Any]) -> Run:
        pid, pidfd = await request.cloned
        run = Run(group, pid, pidfd, ended)
        request.taken.add("cloned")
        self._undo.push("process", partial(_let_go, run))
        self._passed("launch.cloned", "cloned")
        terminal = await request.running
        run.tty_fd = terminal[0] if terminal else -1
        request.taken.add("running")
        self._undo.push("end", partial(self._see_off, group, ended))
        self._passed("launch.running", "running")
        return run

    async def _withdraw(self, request: CloneRequest, group: Group) -> None:
        """The request cannot be called back: what comes of it is killed, its answers are awaited and dropped."""
        await self._host.workers.call(kill, group)
        await asyncio.wait([request.cloned], timeout=_ANSWER_WITHIN)
        await self._host.workers.call(kill, group)  # it may have been cloned after the first time
        await asyncio.wait([request.running], timeout=_ANSWER_WITHIN)
        request.drop()

    async def _see_off(self, group: Group, ended: asyncio.Future[Any]) -> None:
        """Its end is heard of before anybody else waits for a unit of this name: the next start of the same agent."""
        await self._host.workers.call(kill, group)
        done, _ = await asyncio.wait([ended], timeout=_ANSWER_WITHIN)
        if not done:
            raise AgentosError("not-killed", f"still there {_ANSWER_WITHIN:g} s after SIGKILL", group.path)
        exit_id = ended.result().exit_id
        if exit_id is not None:
            self._host.link.acknowledge(exit_id)

    async def _forget(self, unit: str) -> None:
        self._host.units.forget(unit)

    def _prepare(self, userns: int) -> tuple[Group, Rootfs, int]:
        """In a worker thread: all that blocks. Gives the network namespace's fd beside the rest."""
        group = self._group()
        leaf = self._own(group.leaf("main"))
        rootfs = self._rootfs(userns, leaf)
        self._passed("rootfs.mounted", "rootfs")
        return group, rootfs, self._network()

    def _group(self) -> Group:
        tenant = self._host.tenants.get(self._spec.tenant)
        settings = resources.group_settings(self._spec, self._host.options.state_dir, tenant)
        ref = resources.group_ref(self._agent.id, self._spec)
        group = self._host.groups.create(ref, settings, self._spec.allow_unenforced)
        self._undo.push("cgroup", partial(self._host.workers.call, empty_and_remove, group))
        self._passed("cgroup.made", "cgroup")
        return group

    def _rootfs(self, userns: int, leaf: int) -> Rootfs:
        """What it writes is in the agent's directory, and removed with that."""
        host, record = self._host, self._agent.record
        if record.block != host.block:
            shift_owners(self._dir, admission.id_base(record.block, record.slot), self._id_base)
            record.block = host.block
        image = host.image(record.image_digest)
        wire = host.addresses(host.block, record.slot) if self._spec.network != "none" else None
        files = guestfiles.files(self._spec, wire.ipv4 if wire else None, wire.ipv6 if wire else None)
        host.images.prepare(image, Path(self._dir), self._id_base, files)
        faults.point("rootfs.prepared")
        mount_fd = self._own(
            host.images.mount(image, Path(self._dir), userns, self._spec.read_only, workdir=self._workdir(image))
        )
        volumes = [self._own(host.volume(v.source, userns, v.read_only)) for v in self._spec.volumes]
        user = host.user(image, self._spec.user or image.config.user or None)
        return Rootfs(image, mount_fd, leaf, user, volumes)

    def _workdir(self, image: Image) -> Workdir | None:
        """None in a volume: nothing is made there unasked."""
        path = program.workdir(self._spec, image.config)
        if any(PurePosixPath(path).is_relative_to(volume.target) for volume in self._spec.volumes):
            return None
        return Workdir(path, self._id_base)

    def _network(self) -> int:
        """Gives the namespace's fd."""
        host, record = self._host, self._agent.record
        rates = resources.network_rates(self._spec)
        attached = host.network.create(record.slot, record.id, self._spec.network, rates)
        self._own(attached.netns_fd)
        self._undo.push("network", partial(host.workers.call, host.network.destroy, record.slot))
        self._passed("network.made", "network")
        return attached.netns_fd

    def _open_output(self, user: User) -> tuple[LogWriter, Drain]:
        settings = self._host.options.settings
        if not self._spec.tty:
            self._pipes = stdio.make(self._dir, self._id_base + user.uid, stdin=self._spec.stdin)
        log = LogWriter(self._dir, settings.log_max_bytes, settings.log_files)
        output = Drain(log, self._agent.listeners)
        self._undo.push("output", partial(_abandon, output))
        for fd, stream in self._pipes.take_readers().items():
            output.add(fd, stream)
        return log, output


async def _abandon(output: Drain) -> None:
    output.abandon()


async def _let_go(run: Run) -> None:
    run.drain = None  # closed by the undo of the output
    run.close()


def kill(group: Group) -> None:
    """SIGKILL to everything in the group; nothing happens when it is gone."""
    try:
        group.kill()
    except AgentosError as error:
        if error.code != "cgroup-gone":
            raise


def empty_and_remove(group: Group) -> None:
    """Kill whatever is in the group and remove it; nothing happens when it is gone."""
    if not group.remove_if_empty():
        kill(group)
        group.remove()
