"""An agent gets its image, or the image is removed: never both, whoever comes first and however close they are."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore
from agentos_native.spec.model import AgentSpec
from agentos_native.supervisor.lifecycle import Lifecycle
from tests.fakehost import FakeImages, lifecycle_of
from tests.stores import litter, make_image

ROUNDS = 40


class _Images(FakeImages):
    """Looks images up in a real store, and lets others run between that and the rest of an admission."""

    def __init__(self, world: Any, store: ImageStore) -> None:
        super().__init__(world)
        self._store = store

    def get(self, ref: str) -> Any:
        image = self._store.get(ref)
        threading.Event().wait(0.002)
        return image


@pytest.mark.parametrize("how", ["rm", "gc"])
def test_an_agent_and_a_removal_at_once(tmp_path: Path, how: str) -> None:
    store = ImageStore(tmp_path)

    def take(lifecycle: Lifecycle, digest: str) -> bool:
        if how == "gc":
            return digest in store.gc(lifecycle.host.images_kept).images
        try:
            store.remove(digest, lifecycle.host.images_kept)
        except AgentosError as error:
            assert (error.code, "default/a" in error.what) == ("image-in-use", True)
            return False
        return True

    async def work() -> list[bool]:
        outcomes = []
        async with lifecycle_of(tmp_path) as (lifecycle, world, _):
            lifecycle.host.images = _Images(world, store)
            for number in range(ROUNDS):
                digest = make_image(store.catalog, None, b"%d" % number).digest
                removal = asyncio.create_task(asyncio.to_thread(take, lifecycle, digest))
                await asyncio.sleep(0.0004 * (number % 8))
                try:
                    agent = await lifecycle.create(AgentSpec(name="a", image=digest))
                except AgentosError as error:
                    assert error.code == "image-not-found"
                    assert await removal
                else:
                    assert not await removal
                    assert store.get(agent.record.image_digest).layers[0].is_dir()
                    await lifecycle.remove(agent)
                    store.remove(digest)
                outcomes.append(removal.result())
        return outcomes

    outcomes = asyncio.run(work())
    assert len(outcomes) == ROUNDS
    assert litter(store.catalog) == []
    assert store.list() == []
