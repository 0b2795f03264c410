"""Builds on fakes: what is done and what is known already, how a build fails, is cancelled, and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.build import dockerfile
from agentos_native.images.model import History, Image, ImageConfig, Layer, Manifest
from agentos_native.images.store import ImageStore
from agentos_native.spec.model import AgentSpec, TenantLimits, TenantSpec
from agentos_native.supervisor.building import execution, pins
from agentos_native.supervisor.building.builder import Builder
from agentos_native.supervisor.building.workshop import Workshop
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.views import image_view
from agentos_native.wire.images import BuildRequest, ImageEvent
from tests.fakehost import FakeImages, FakeLink, World, lifecycle_of


class CatalogImages(FakeImages):
    """Real records of images, faked mounts."""

    def __init__(self, world: World, store: ImageStore) -> None:
        super().__init__(world)
        self._store = store

    def get(self, ref: str) -> Image:
        return self._store.get(ref)


class FakeWorkshop(Workshop):
    """Makes layers without a worker: each is a file with a number that says what made it."""

    def __init__(self, store: ImageStore) -> None:
        super().__init__(store)
        self.made: list[str] = []

    def layer(self, what: str, keys: Any = ()) -> Layer:
        self.made.append(what)
        with self.catalog.staging() as staged:
            (staged.path / "made").write_text(what)
            digest = f"sha256:{abs(hash(what)):064x}"
            return self.catalog.add_layer(staged, Layer(digest=digest, size=len(what), entries=2), keys)

    def instructions(self, hand: Any, text: bytes, name: str) -> Any:
        return dockerfile.parse(text, name)

    def copy(self, hand: Any, copy: Any, source: Any, below: Any, key: str, report: Any) -> Any:
        return self.layer(f"copy {key}", [key]), ()

    def directory(self, hand: Any, path: str, below: Any, key: str) -> Any:
        return self.layer(f"directory {key}", [key])

    def private_layer(self, hand: Any, left: Any, below: Any, keys: Any, report: Any, forgotten: Any = ()) -> Any:
        return self.layer(f"upper {len(self.made)} {keys}", keys), ()


class Scene:
    """A supervisor's builder on fakes. RUN ends as `runs` says by its last word: (output, exit status)."""

    def __init__(self, directory: Path, lifecycle: Lifecycle, world: World, link: FakeLink) -> None:
        self.lifecycle, self.world, self.link = lifecycle, world, link
        self.store = ImageStore(directory)
        lifecycle.host.images = CatalogImages(world, self.store)
        self.builder = Builder(lifecycle, self.store, image_view)
        self.workshop = FakeWorkshop(self.store)
        self.builder._workshop = self.workshop
        self.context = directory / "context"
        self.context.mkdir()
        self.runs: dict[str, tuple[bytes, int]] = {}
        self.ran: list[str] = []
        config = ImageConfig(env=(("PATH", "/bin"),), cmd=("/bin/sh",))
        with self.store.catalog.lease():
            layers = (self.workshop.layer("base"),)
            made_by = (History(created_by="base"),)
            manifest = Manifest(config=config, layers=layers, created=1.0, architecture="amd64", history=made_by)
            self.base = self.store.catalog.commit("base", manifest)

    def say(self, text: str) -> None:
        """The Dockerfile."""
        (self.context / "Dockerfile").write_text(text)

    async def build(self, **fields: Any) -> list[ImageEvent]:
        """Build, with the sandboxes played; all events."""
        running = self.builder.begin(BuildRequest(context=str(self.context), **fields))
        player = asyncio.create_task(self.play())
        try:
            return [msgspec.json.decode(line, type=ImageEvent) async for line in running.lines()]
        finally:
            player.cancel()
            await running.cancel()

    async def play(self) -> None:
        """End every sandbox as `runs` says."""
        done: set[str] = set()
        while True:
            for agent in self.lifecycle.host.agents:
                if agent.record.state == "running" and agent.id not in done:
                    done.add(agent.id)
                    command = agent.record.spec.command[-1]
                    self.ran.append(command)
                    output, status = self.runs.get(command.split()[0], (b"", 0))
                    for listener in agent.listeners:
                        listener.feed("stdout", output)
                    if status >= 0:
                        self.link.exit(agent.id, status)
            await asyncio.sleep(0.005)

    def left(self) -> tuple[list[str], list[str], list[str]]:
        """What a build may not leave: agents, files of agents, and unnamed images."""
        unnamed = [image.digest for image in self.store.list() if not image.names]
        return [agent.id for agent in self.lifecycle.host.agents], sorted(self.world.exists), unnamed


Story = Callable[[Scene], Awaitable[None]]


def play(directory: Path, story: Story) -> None:
    async def work() -> None:
        async with lifecycle_of(directory) as (lifecycle, world, link):
            scene = Scene(directory, lifecycle, world, link)
            try:
                await asyncio.wait_for(story(scene), 30)
            finally:
                await scene.builder.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(work())
    assert len(os.listdir("/proc/self/fd")) == before


def kinds(events: list[ImageEvent]) -> str:
    return " ".join(event.kind for event in events if event.kind not in ("log", "note"))


SIMPLE = 'FROM base\nENV A=b\nCOPY file /file\nRUN one\nRUN two\nCMD ["x"]\n'


def test_each_step_is_told_and_made_once(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say(SIMPLE)
        (scene.context / "file").write_text("content")
        scene.runs["one"] = (b"first\nsec\xc3\xa9ond", 0)
        events = await scene.build(names=["app", "app:1"], labels={"who": "me"})
        assert kinds(events) == "step step step step step step done"
        assert [(e.step, e.steps, e.line, e.text) for e in events if e.kind == "step"][:2] == [
            (1, 6, 1, "FROM base"),
            (2, 6, 2, "ENV A=b"),
        ]
        assert [(e.step, e.text) for e in events if e.kind == "log"] == [(4, "first"), (4, "secéond")]
        image = scene.store.get("app")
        assert image.digest == scene.store.get("app:1").digest
        assert events[-1].image is not None
        assert events[-1].image.digest == image.digest
        assert (image.config.cmd, dict(image.config.env)["A"], image.config.labels) == (("x",), "b", {"who": "me"})
        assert [entry.empty for entry in image.history] == [False, True, False, False, False, True]
        assert image.history[3].created_by == "RUN /bin/sh -c one"
        assert (len(image.stack), image.architecture) == (4, "amd64")
        assert scene.left() == ([], [], [])
        scene.ran.clear()
        made = len(scene.workshop.made)
        again = await scene.build(names=["app"], labels={"who": "me"})
        assert kinds(again) == "step step step cached step cached step cached step done"
        assert again[-1].image is not None
        assert again[-1].image.digest == image.digest
        assert (scene.ran, len(scene.workshop.made)) == ([], made)
        await scene.build(names=["app"], no_cache=True)
        assert scene.ran == ["one", "two"]

    play(tmp_path, story)


def test_a_label_that_is_no_type_of_agent_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN one\nLABEL io.agentos.type=robot\n")
        events = await scene.build()
        assert (kinds(events), (events[-1].error or {})["code"]) == ("failed", "invalid-label")
        events = await scene.build(labels={"io.agentos.type": "dialogue"})
        assert events[-1].image is not None and events[-1].image.type == "dialogue"

    play(tmp_path, story)


def test_a_change_is_done_again_with_all_that_follows_and_nothing_else(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nARG V=1\nRUN zero\nCOPY file /file\nRUN one $V\n")
        (scene.context / "file").write_text("1")
        (scene.context / "other").write_text("1")
        await scene.build(names=["app"])
        scene.ran.clear()
        (scene.context / "other").write_text("2")
        os.utime(scene.context / "file")
        await scene.build(names=["app"])
        assert scene.ran == []  # neither a time nor a file that nothing takes
        (scene.context / "file").write_text("2")
        await scene.build(names=["app"])
        assert scene.ran == ["one $V"]
        scene.ran.clear()
        await scene.build(names=["app"], args={"V": "2"})
        assert scene.ran == ["zero", "one $V"]  # docker's way: every RUN below an ARG sees it
        scene.ran.clear()
        await scene.build(names=["app"], network="egress")
        assert scene.ran == ["zero", "one $V"]
        scene.ran.clear()
        await scene.build(names=["app"], args={"V": "2"})
        assert scene.ran == []

    play(tmp_path, story)


def test_a_failing_step_says_where_and_leaves_the_steps_before(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN good\n\nRUN bad \\\n  thing\n")
        scene.runs["bad"] = (b"".join(b"line %d\n" % n for n in range(50)) + b"Could not resolve host", 3)
        events = await scene.build(names=["app"])
        failed = events[-1]
        assert failed.kind == "failed"
        error = AgentosError.from_dict(failed.error or {})
        assert error.code == "build-failed"
        assert error.what.startswith("step 3/3 (Dockerfile:4) RUN bad")
        assert error.where == "exit status 3"
        assert error.hint.splitlines()[0].endswith("--network egress")
        assert error.details["output"][-2:] == ["line 49", "Could not resolve host"]
        assert (failed.failed_image, failed.shell) == ("", [])
        assert scene.left() == ([], [], [])
        assert [image.name for image in scene.store.list()] == ["base"]
        scene.ran.clear()
        await scene.build(names=["app"])
        assert [command.split()[0] for command in scene.ran] == ["bad"]

    play(tmp_path, story)


def test_what_a_failing_step_left_can_be_kept(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say('FROM base\nSHELL ["/bin/sh", "-ec"]\nENV A=b\nUSER 1000\nWORKDIR /work\nRUN bad\n')
        scene.runs["bad"] = (b"", 1)
        failed = (await scene.build(keep_failed=True))[-1]
        kept = scene.store.get(failed.failed_image)
        assert kept.names == ()
        assert (kept.config.cmd, kept.config.user, kept.config.workdir) == (("/bin/sh",), "1000", "/work")
        assert dict(kept.config.env)["A"] == "b"
        assert failed.shell == ["/bin/sh", "-ec", "bad"]
        assert scene.left() == ([], [], [kept.digest])

    play(tmp_path, story)


def test_a_client_that_goes_takes_its_sandbox_with_it(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN good\nRUN endless\n")
        scene.runs["endless"] = (b"", -1)
        running = scene.builder.begin(BuildRequest(context=str(scene.context)))
        player = asyncio.create_task(scene.play())
        deadline = time.monotonic() + 20
        while scene.ran != ["good", "endless"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        with pytest.raises(AgentosError, match="image-in-use"):
            scene.store.catalog.remove("base")
        await running.cancel()
        player.cancel()
        assert scene.left() == ([], [], [])
        assert os.listdir(scene.store.path / "leases") == []

    play(tmp_path, story)


@pytest.mark.parametrize("stage", ["prepare", "clone", "network"])
def test_a_sandbox_that_does_not_start_leaves_nothing(tmp_path: Path, stage: str) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN x\n")
        scene.world.fail = {stage}
        error = AgentosError.from_dict((await scene.build())[-1].error or {})
        assert error.code == "build-failed"
        assert "was not started" in error.where
        assert scene.left() == ([], [], [])

    play(tmp_path, story)


def test_two_builds_at_once_do_not_meet(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN one\nRUN two\n")
        ended = await asyncio.gather(scene.build(names=["a"]), scene.build(names=["b"]))
        assert [events[-1].kind for events in ended] == ["done", "done"]
        assert scene.left()[0] == []
        assert [image.name for image in scene.store.list() if image.names] == ["a", "b", "base"]

    play(tmp_path, story)


def test_a_build_beside_collections(tmp_path: Path) -> None:
    """A collection has the store's lock when it keeps agents from getting images: who gives an agent its image must not
    want that lock, whatever context it is in."""

    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN one\nRUN two\n")
        ended = threading.Event()

        def collect() -> None:
            while not ended.wait(0.002):
                scene.store.gc(scene.lifecycle.host.images_kept, older_than=None)

        collecting = asyncio.create_task(asyncio.to_thread(collect))
        with scene.store.catalog.lease():
            events = await scene.build(no_cache=True)
        ended.set()
        await collecting
        assert events[-1].kind == "done"

    play(tmp_path, story)


def test_a_step_waits_for_room_in_its_tenant(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN one\n")
        scene.lifecycle.host.tenants["full"] = TenantSpec(name="full", limits=TenantLimits(agents=1))
        other = await scene.lifecycle.run(AgentSpec(name="other", tenant="full", image="base", command=("stays",)))
        scene.runs["stays"] = (b"", -1)
        running = scene.builder.begin(BuildRequest(context=str(scene.context), tenant="full"))
        player = asyncio.create_task(scene.play())
        events = []
        async for line in running.lines():
            events.append(msgspec.json.decode(line, type=ImageEvent))
            if events[-1].kind == "note":
                await scene.lifecycle.remove(other, force=True)
        player.cancel()
        assert kinds(events) == "step step done"
        assert scene.ran[-1] == "one"

    play(tmp_path, story)


def test_stages_are_built_as_far_as_they_are_needed(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say(
            "FROM base AS one\nRUN first\nFROM base AS unused\nRUN second\nFROM base AS last\n"
            "COPY --from=one /x /x\nRUN third\n"
        )
        assert kinds(await scene.build(names=["app"])) == "step step step step step done"
        assert scene.ran == ["first", "third"]
        scene.ran.clear()
        await scene.build(names=["app"], target="unused")
        assert scene.ran == ["second"]

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("FROM nothing:1\n", "image-not-found", "image pull"),
        ("FROM base\nRUN --network=host x\n", "", "network"),
        ("FROM scratch\nRUN x\n", "build-failed", "empty stage"),
        ("FROM base\nCOPY missing /\n", "", "missing"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, text: str, code: str, words: str) -> None:
    async def story(scene: Scene) -> None:
        scene.say(text)
        error = AgentosError.from_dict((await scene.build())[-1].error or {})
        assert not code or error.code == code, error
        assert words in str(error)
        assert scene.left() == ([], [], [])

    play(tmp_path, story)


def test_a_registry_without_room_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.execute("PRAGMA max_page_count = 1")
            db.execute("CREATE TABLE t (x)")

    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN one\n")
        monkeypatch.setattr(scene.lifecycle.host.registry, "save", full)
        error = AgentosError.from_dict((await scene.build())[-1].error or {})
        assert (error.code, "image gc" in error.hint) == ("disk-full", True)

    play(tmp_path, story)


@pytest.mark.parametrize("last", ["COPY <<e /c\nx\ne\n", "RUN two", "WORKDIR /c"])
def test_no_more_layers_than_can_be_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    monkeypatch.setattr(execution, "LAYERS_MAX", 3)

    async def story(scene: Scene) -> None:
        fits = "FROM base\nCOPY <<e /a\nx\ne\nCOPY <<e /b\nx\ne\n"
        scene.say(fits)
        assert (await scene.build(names=["app"]))[-1].kind == "done"
        scene.say(fits + last)
        error = AgentosError.from_dict((await scene.build(names=["app"]))[-1].error or {})
        assert (error.code, error.where) == ("too-many-layers", "Dockerfile:8")
        assert "join" in error.hint
        assert scene.ran == []

    play(tmp_path, story)


def test_what_a_killed_supervisor_left_is_removed(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        left = pins.Pins(scene.lifecycle.host, scene.store.catalog, "dead")
        image = left.pin(scene.base.stack)
        assert image.digest != scene.base.digest
        assert await scene.builder.recover() == [image.digest]
        assert scene.left() == ([], [], [])
        assert scene.store.get("base").digest == scene.base.digest

    play(tmp_path, story)


def test_a_supervisor_that_stops_cancels_its_builds(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.say("FROM base\nRUN endless\n")
        scene.runs["endless"] = (b"", -1)
        task = asyncio.create_task(scene.build())
        while not scene.ran:
            await asyncio.sleep(0.01)
        await scene.builder.close()
        error = AgentosError.from_dict((await task)[-1].error or {})
        assert error.code == "cancelled"
        assert scene.left() == ([], [], [])
        with pytest.raises(AgentosError, match="stopping"):
            scene.builder.begin(BuildRequest(context="/"))

    play(tmp_path, story)
