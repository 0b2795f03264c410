"""Any order of imports, tags, removals, collections, uses and work under way, against a model of a few dictionaries.

The model says which images and layers there must be after each step: no layer of a reachable image is ever lost, and
after a collection nothing is left that nobody reaches.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Layer
from agentos_native.images.records import manifest_digest
from tests.stores import add_layer, litter, manifest

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
NAMES = st.sampled_from(["a", "b:1", "localhost:5000/c"])
STACKS = st.lists(st.sampled_from([b"1", b"2", b"3", b"4"]), min_size=1, max_size=3, unique=True)


class Store(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=_MEMORY)
        self.catalog = Catalog(Path(self.directory.name) / "images")
        self.names: dict[str, str] = {}
        self.images: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.steps: dict[str, str] = {}
        self.work = contextlib.ExitStack()
        self.held: set[str] | None = None
        self.held_images: set[str] = set()
        self.loose: dict[bytes, Layer] = {}

    def teardown(self) -> None:
        self.work.close()
        self.directory.cleanup()

    # -- what is done

    def _layers(self, stack: list[bytes], kind: str) -> list[Layer]:
        layers = [add_layer(self.catalog, {"f": content}, [f"{kind}:{content.decode()}"]) for content in stack]
        if kind == "step":
            self.steps |= {f"step:{c.decode()}": layer.digest for c, layer in zip(stack, layers, strict=True)}
        return layers

    @rule(name=NAMES | st.none(), stack=STACKS, kind=st.sampled_from(["diff", "step"]))
    def make(self, name: str | None, stack: list[bytes], kind: str) -> None:
        with self.catalog.lease():
            image = self.catalog.commit(name, manifest(*self._layers(stack, kind)))
            if self.held is not None:
                self.held |= set(self._of(image))
                self.held_images.add(image.digest)
        self.images[image.digest] = self._of(image)
        if name is not None:
            self.names[name] = image.digest

    @rule(source=NAMES, name=NAMES)
    def tag(self, source: str, name: str) -> None:
        if source in self.names:
            assert self.catalog.tag(source, name).digest == self.names[source]
            self.names[name] = self.names[source]
        else:
            with pytest.raises(AgentosError, match="no image"):
                self.catalog.tag(source, name)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        digest = self.names.get(name)
        last = digest is not None and [*self.names.values()].count(digest) == 1
        if digest is None or (last and digest in self.used):
            with pytest.raises(AgentosError):
                self.catalog.remove(name, self.used)
            return
        self.catalog.remove(name, self.used)
        del self.names[name]
        if last:
            self._forget(digest)

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def remove_by_digest(self, data: Any) -> None:
        digest = data.draw(st.sampled_from(sorted(self.images)))
        if digest in self.used:
            with pytest.raises(AgentosError):
                self.catalog.remove(digest, self.used)
            return
        self.catalog.remove(digest, self.used)
        self.names = {name: held for name, held in self.names.items() if held != digest}
        self._forget(digest)

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def use(self, data: Any) -> None:
        self.used.add(data.draw(st.sampled_from(sorted(self.images))))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.used.remove(data.draw(st.sampled_from(sorted(self.used))))

    @rule(cache=st.booleans())
    def collect(self, cache: bool) -> None:
        dry = self.catalog.gc(self.used, dry_run=True, older_than=None if cache else 3600)
        freed = self.catalog.gc(self.used, older_than=None if cache else 3600)
        assert dry == freed
        reached = set(self.names.values()) | self.used | self.held_images
        assert set(freed.images) == set(self.images) - reached
        for digest in freed.images:
            del self.images[digest]
        if cache:
            self.steps = {key: layer for key, layer in self.steps.items() if layer in (self.held or ())}
        if self.held is None:
            assert litter(self.catalog) == []
        assert set(self._present()) == self._reached()

    @rule()
    def recover(self) -> None:
        self.catalog.recover()
        assert set(self._present()) == self._reached()

    @precondition(lambda self: self.held is None)
    @rule(content=st.sampled_from([b"1", b"5"]))
    def begin_work(self, content: bytes) -> None:
        """An import that has looked up one layer, and made another one."""
        self.work.enter_context(self.catalog.lease())
        layer = add_layer(self.catalog, {"f": content}, [f"diff:{content.decode()}"])
        self.held = {layer.digest}
        known = self.catalog.known("diff:2")
        if known is not None:
            self.held.add(known.digest)

    @precondition(lambda self: self.held is not None)
    @rule(name=NAMES, committed=st.booleans())
    def end_work(self, name: str, committed: bool) -> None:
        assert self.held is not None
        if committed:
            layers = [Layer(digest=digest, size=1, entries=2) for digest in sorted(self.held)]
            image = self.catalog.commit(name, manifest(*layers))
            self.names[name] = image.digest
            self.images[image.digest] = self._of(image)
        self.work.close()
        self.held = None
        self.held_images = set()

    # -- what must be true

    @invariant()
    def names_and_images_are_those_of_the_model(self) -> None:
        listed = self.catalog.list()
        assert {image.name: image.digest for image in listed if image.name} == self.names
        assert {image.digest: self._of(image) for image in listed} == self.images

    @invariant()
    def no_layer_that_is_reached_is_lost(self) -> None:
        assert self._reached() <= set(self._present())
        for key, digest in self.steps.items():
            found = self.catalog.index.look_up(key)  # `known` would use it
            assert found is not None
            assert found.digest == digest

    def _reached(self) -> set[str]:
        of_images = {layer for layers in self.images.values() for layer in layers}
        return of_images | set(self.steps.values()) | (self.held or set())

    def _present(self) -> list[str]:
        return [f"sha256:{name}" for name in os.listdir(self.catalog.disk.layers)]

    def _of(self, image: Any) -> list[str]:
        layers = [layer.digest for layer in image.stack]
        assert manifest_digest(image.config, layers) == image.digest
        return layers

    def _forget(self, digest: str) -> None:
        del self.images[digest]


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
