"""One build, from its request to its image. Runs on the event loop; what blocks is in the `workshop`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.build import context
from agentos_native.images.build.evaluate import evaluate
from agentos_native.images.build.model import Copy, Instruction, Plan, Run, Stage, Step
from agentos_native.images.caches import Held
from agentos_native.images.model import History, Image, ImageConfig, Layer, Manifest
from agentos_native.images.oci.model import LAYERS_MAX
from agentos_native.images.unpack.messages import Progress
from agentos_native.spec.model import NetworkMode, Volume
from agentos_native.supervisor import admission, imagetypes
from agentos_native.supervisor.agents import Agent
from agentos_native.supervisor.building import failing, keys, sandbox
from agentos_native.supervisor.building.feed import Feed, Output
from agentos_native.supervisor.building.pins import Leased, Pins
from agentos_native.supervisor.building.workshop import Hand, Left, Workshop, read_dockerfile
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.wire.images import BuildRequest, ImageEvent

T = TypeVar("T")
COMMENT: Final = "agentos-native image build"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_REPORT_EVERY: Final = 0.2
_CACHE_POLL: Final = 0.2


@dataclass
class _Tree:
    """A stage so far."""

    layers: tuple[Layer, ...] = ()
    history: list[History] = field(default_factory=list)
    config: ImageConfig = field(default_factory=ImageConfig)
    author: str = ""
    architecture: str = ""


@dataclass(frozen=True)
class _Place:
    """Which step it is."""

    step: int
    steps: int
    line: int
    text: str


class Build:
    """Use once: `run`."""

    def __init__(self, lifecycle: Lifecycle, workshop: Workshop, request: BuildRequest, build: str, feed: Feed) -> None:
        self._lifecycle = lifecycle
        self._host = lifecycle.host
        self._workshop = workshop
        self._request = request
        self._id = build
        self._feed = feed
        self._hand = Hand()
        self._leased = Leased(workshop.catalog, workshop.threads)
        self._pins = Pins(self._host, workshop.catalog, build)
        self._bases: dict[str, Image] = {}
        self._trees: dict[int, _Tree] = {}
        self._context: context.Tree
        self._file = "Dockerfile"
        self._number = 0

    async def run(self) -> Image:
        """Do it all.

        Raises:
            AgentosError: what failed; nothing is left of the build but the layers of the steps that went well.
        """
        request = self._request
        wanted = [names.parse_name(name) for name in request.names]
        sandbox.limits_of(request)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._leased)
            stack.push_async_callback(self._end)
            kept = contextlib.ExitStack()
            stack.push_async_callback(self._leased.call, kept.close)
            directory = await self._thread(self._workshop.open_context, self._hand, request.context, kept)
            plan = await self._plan(directory)
            last = plan.stages[-1]
            labels = (last.steps[-1].config if last.steps else last.config).labels
            imagetypes.check({**labels, **request.labels}, last.config.labels)
            for note in plan.notes:
                self._feed.put(ImageEvent(kind="note", text=note))
            steps = sum(1 + len(stage.steps) for stage in plan.stages)
            for stage in plan.stages:
                self._trees[stage.index] = await self._stage(stage, steps)
            return await self._commit(self._trees[plan.stages[-1].index], plan, wanted)

    async def _end(self) -> None:
        await self._leased.call(self._hand.drop)
        await self._leased.call(self._pins.drop)
        self._pins.forget()

    # -- what is to be done

    async def _plan(self, directory: int) -> Plan:
        text, self._file = await self._thread(read_dockerfile, self._request, directory)
        instructions = await self._thread(self._workshop.instructions, self._hand, text, self._file)
        file = os.path.relpath(
            os.path.join(self._request.context, self._request.file or "Dockerfile"), self._request.context
        )
        inside = "Dockerfile" if file.startswith("..") else file
        self._context = await self._thread(context.open_context, directory, inside)
        return await self._thread(self._evaluate, instructions)

    def _evaluate(self, instructions: tuple[Instruction, ...]) -> Plan:
        """In a thread: it looks images up."""
        return evaluate(
            instructions,
            self._request.args,
            lambda name: self._base(name).config,
            self._request.target,
            name=self._file,
            architecture=_architecture(),
        )

    def _base(self, name: str) -> Image:
        """The image of a FROM or of a --from, which the lease holds from now on."""
        if name not in self._bases:
            self._bases[name] = _find(self._workshop, name)
        return self._bases[name]

    # -- stages and steps

    async def _stage(self, stage: Stage, steps: int) -> _Tree:
        self._number += 1
        place = _Place(self._number, steps, stage.line, stage.text or f"FROM {stage.base or 'scratch'}")
        self._begin(place)
        tree = self._begun(stage)
        for step in stage.steps:
            self._number += 1
            place = _Place(self._number, steps, step.line, step.text)
            self._begin(place)
            made = await self._step(tree, step, place)
            tree.config = step.config
            if made is not None:
                tree.layers = (*tree.layers, made)
            tree.history.append(_history(step, made is None))
        return tree

    def _begun(self, stage: Stage) -> _Tree:
        if stage.base_stage >= 0:
            earlier = self._trees[stage.base_stage]
            kept = (earlier.layers, [*earlier.history], stage.config, earlier.author, earlier.architecture)
            return _Tree(*kept)
        if not stage.base:
            return _Tree(config=stage.config, architecture=_architecture())
        image = self._base(stage.base)
        return _Tree(image.stack, _whole_history(image), stage.config, image.author, image.architecture)

    async def _step(self, tree: _Tree, step: Step, place: _Place) -> Layer | None:
        """The layer that the step makes, or None."""
        if step.run is not None:
            network = self._network(step.run, place)
            ground = await self._ground(tree, step.run, place)
            self._check_room(ground, place)
            key = keys.run_key(ground.layers, step.run, network)
            return await self._known(key, place) or await self._run(ground, step, step.run, network, key, place)
        if step.copy is not None:
            return await self._copy(tree, step.copy, place)
        if step.make_workdir:
            return await self._directory(tree, step.make_workdir, place)
        return None

    async def _ground(self, tree: _Tree, run: Run, place: _Place) -> _Tree:
        """What a RUN stands on: the stage, and above it the files and directories of its mounts."""
        ground = replace(tree)
        for copy in run.binds:
            ground.layers = (*ground.layers, await self._copy(ground, copy, place, told=False))
        bound = {copy.destination for copy in run.binds}
        for path in (path for path in run.forgotten if path not in bound):
            made = await self._directory(ground, path, place, told=False)
            ground.layers = (*ground.layers, made) if made is not None else ground.layers
        return ground

    async def _directory(self, tree: _Tree, path: str, place: _Place, *, told: bool = True) -> Layer | None:
        """None when the stage has it."""
        key = keys.directory_key(tree.layers, path)
        known = await self._known(key, place, told=told)
        work = self._workshop.directory
        made = known or await self._thread(work, self._hand, path, tree.layers, key)
        if made is not None:
            self._check_room(tree, place)
        return made

    def _check_room(self, tree: _Tree, place: _Place) -> None:
        """One more layer must still be one that can be mounted below an agent's private layer."""
        if len(tree.layers) >= LAYERS_MAX:
            raise AgentosError(
                "too-many-layers",
                f"this instruction would make layer {len(tree.layers) + 1}; an image has {LAYERS_MAX} at most",
                f"{self._file}:{place.line}",
                "join instructions: one RUN with several commands (&&), one COPY of several files",
            )

    async def _known(self, key: str, place: _Place, *, told: bool = True) -> Layer | None:
        if self._request.no_cache:
            return None
        layer = await self._thread(self._workshop.catalog.known, key)
        if layer is not None and told:
            self._feed.put(ImageEvent(kind="cached", step=place.step, steps=place.steps))
        return layer

    async def _copy(self, tree: _Tree, copy: Copy, place: _Place, *, told: bool = True) -> Layer:
        self._check_room(tree, place)
        layers: Sequence[Layer] = ()
        if copy.origin.isdigit():
            layers = self._trees[int(copy.origin)].layers
        elif copy.origin:
            layers = self._base(copy.origin).stack
        selection: context.Selection | None = None
        with failing.at(self._file, place.line):
            if not copy.origin:
                selection, content = await self._thread(self._workshop.selected, copy, self._context)
            else:
                content = context.origin_key(copy, [layer.digest for layer in layers])
            key = keys.copy_key(tree.layers, content)
            known = await self._known(key, place, told=told)
            if known is not None:
                return known
            source, report = layers if selection is None else selection, self._reporter(place)
            made, notes = await self._thread(self._workshop.copy, self._hand, copy, source, tree.layers, key, report)
            self._note(place, notes)
            return made

    # -- RUN

    def _network(self, run: Run, place: _Place) -> NetworkMode:
        """The build's network, or less."""
        given = self._request.network
        wanted = run.network if run.network not in {"", "default"} else given
        if wanted == given:
            return given
        if wanted == "none":
            return "none"
        raise AgentosError(
            "build-network",
            f"RUN asks for --network={wanted}, which this build does not give",
            f"{self._file}:{place.line}",
            "say --network egress to the build, or leave it out of the instruction",
        )

    async def _run(self, tree: _Tree, step: Step, run: Run, network: NetworkMode, key: str, place: _Place) -> Layer:
        if not tree.layers:
            raise failing.error(self._describe(place), "there is no program in an empty stage", run, network)
        image = await self._thread(self._pins.pin, tree.layers)
        output = Output(self._feed, place.step)
        async with contextlib.AsyncExitStack() as stack:
            caches = await self._caches(run, place, stack)
            spec = sandbox.spec_of(run, self._request, network, (self._id, place.step), image.digest, caches)
            try:
                agent = await stack.enter_async_context(
                    sandbox.ran(self._lifecycle, spec, place.step, self._feed, output)
                )
            except AgentosError as error:
                raise failing.not_started(self._describe(place), error, run, network) from None
            record = agent.record
            left = await self._left(agent, stack)
            if record.exit_status == 0:
                work, report = self._workshop.private_layer, self._reporter(place)
                made, notes = await self._thread(work, self._hand, left, tree.layers, [key], report, run.forgotten)
                self._note(place, notes)
                return made
            kept = self._request.keep_failed
            failure = failing.ended(self._describe(place), record, run, network, output.last, kept=kept)
            if kept:
                image = await self._keep_failed(tree, step, run, left)
                failure.details["failed_image"] = image.digest
            raise failure

    async def _caches(self, run: Run, place: _Place, stack: contextlib.AsyncExitStack) -> tuple[Volume, ...]:
        """The caches of a RUN, held by `stack`."""
        if not run.caches:
            return ()
        held = stack.enter_context(Held())
        told = False
        while not await self._thread(self._workshop.caches.take, held, self._request.tenant, run.caches):
            if not told:
                self._note(place, ["waits for a cache that another build has"])
                told = True
            await asyncio.sleep(_CACHE_POLL)
        return tuple(
            Volume(
                source=stack.enter_context(self._host.grants.granted(held.trees[cache.target])),
                target=cache.target,
                read_only=cache.read_only,
            )
            for cache in run.caches
        )

    async def _left(self, agent: Agent, stack: contextlib.AsyncExitStack) -> Left:
        """The user namespace is the launcher's to make: nobody else clones."""
        id_base = admission.id_base(self._host.block, agent.record.slot)
        userns = await self._host.link.make_userns(0, admission.ID_RANGE, inside=id_base)
        stack.callback(os.close, userns)
        return Left(Path(self._host.options.agent_dir(agent.id)), id_base, userns)

    async def _keep_failed(self, tree: _Tree, step: Step, run: Run, left: Left) -> Image:
        """What a failing RUN left, as an image without a name whose command is the shell and whose user, directory and
        environment are those of the step."""
        work = self._workshop.private_layer
        made, _ = await self._thread(work, self._hand, left, tree.layers, [], lambda _: None)
        config = ImageConfig(
            cmd=step.config.shell[:1] or ("/bin/sh",), env=run.env, user=run.user, workdir=run.workdir or "/"
        )
        manifest = Manifest(
            config=config, layers=(*tree.layers, made), created=time.time(), architecture=_architecture()
        )
        return await self._thread(self._workshop.catalog.commit, None, manifest)

    # -- the end

    async def _commit(self, tree: _Tree, plan: Plan, wanted: Sequence[str]) -> Image:
        labels = {**tree.config.labels, **self._request.labels}
        manifest = Manifest(
            config=msgspec.structs.replace(tree.config, labels=labels),
            layers=tree.layers,
            created=time.time(),
            history=tuple(tree.history),
            architecture=tree.architecture or _architecture(),
            author=plan.author or tree.author,
        )
        catalog = self._workshop.catalog
        image = None
        for name in wanted or (None,):
            image = await self._thread(catalog.commit, name, manifest)
        assert image is not None
        return image

    # -- telling

    def _begin(self, place: _Place) -> None:
        self._feed.put(ImageEvent(kind="step", step=place.step, steps=place.steps, line=place.line, text=place.text))

    def _note(self, place: _Place, notes: Sequence[str]) -> None:
        for note in notes:
            self._feed.put(ImageEvent(kind="note", step=place.step, text=note))

    def _describe(self, place: _Place) -> str:
        return f"step {place.step}/{place.steps} ({self._file}:{place.line}) {place.text}"

    def _reporter(self, place: _Place) -> Callable[[Progress], None]:
        """Progress from a worker's thread."""
        due = time.monotonic() + 2 * _REPORT_EVERY  # what is quick is not worth a line

        def report(progress: Progress) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _REPORT_EVERY
                what = f"{progress.entries} files"
                self._feed.put_soon(ImageEvent(kind="progress", step=place.step, what=what, done=progress.bytes))

        return report

    async def _thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """`work` in a thread, under the build's lease; when this task is cancelled the confined worker is ended."""
        return await self._leased.call(work, *arguments, interrupt=self._hand.drop)


def _find(workshop: Workshop, name: str) -> Image:
    """The image that FROM or --from names."""
    try:
        return workshop.catalog.get(name)
    except AgentosError as error:
        raise _not_found(name, error) from None


def _not_found(name: str, error: AgentosError) -> AgentosError:
    if error.code != "image-not-found":
        return error
    hint = (
        f"agentos-native image pull HOST/{name} --name {name}    gets it from a registry\n"
        f"agentos-native image import {name} PATH    makes it from a directory, a tar, an OCI layout or docker save"
    )
    return AgentosError("image-not-found", f"no image {name!r} to build from", error.where, f"{hint}\n{error.hint}")


def _history(step: Step, empty: bool) -> History:
    """As docker writes it: of a RUN what was executed, of the others the instruction."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = step.text
    if step.run is not None:
        text = "RUN " + " ".join(step.run.argv)
    return History(created_by=text, created=created, comment=COMMENT, empty=empty)


def _whole_history(image: Image) -> list[History]:
    """A step for each layer, also of an image whose history says nothing of its first layers (an imported tree)."""
    told = sum(not entry.empty for entry in image.history)
    return [History(comment="imported")] * (len(image.stack) - told) + [*image.history]


def _architecture() -> str:
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)
