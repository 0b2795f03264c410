"""The type of an agent as its image's label says it: when it counts, and what is no type."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.model import Image, ImageConfig
from agentos_native.spec import agent_from_builtins
from agentos_native.spec.model import TYPE_LABEL, AgentSpec
from agentos_native.supervisor import imagetypes
from agentos_native.supervisor.applying import Applier
from agentos_native.supervisor.lifecycle import Lifecycle
from agentos_native.supervisor.views import agent_view, image_view
from tests.fakehost import lifecycle_of


def spec(**fields: Any) -> AgentSpec:
    return agent_from_builtins({"name": "a", "image": "box", **fields})


def labelled(lifecycle: Lifecycle, label: str | None) -> None:
    """From now on the image says that."""
    images = lifecycle.host.images
    real = type(images).get

    def get(ref: str) -> Image:
        image = real(images, ref)
        labels = {} if label is None else {TYPE_LABEL: label}
        return msgspec.structs.replace(image, config=msgspec.structs.replace(image.config, labels=labels))

    images.get = get  # type: ignore[method-assign]


def play(directory: Path, story: Callable[[Lifecycle], Awaitable[None]]) -> None:
    async def work() -> None:
        async with lifecycle_of(directory) as (lifecycle, _, _):
            await asyncio.wait_for(story(lifecycle), 20)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("label", "said", "wanted"),
    [
        (None, None, "task"),
        ("dialogue", None, "dialogue"),
        ("dialogue", "learning", "learning"),
        (None, "learning", "learning"),
        ("learning", "task", "task"),
        ("robot", None, "task"),
        ("robot", "dialogue", "dialogue"),
        ("", None, "task"),
        ("Dialogue", None, "task"),
    ],
)
def test_the_spec_counts_before_the_image(tmp_path: Path, label: str | None, said: str | None, wanted: str) -> None:
    async def story(lifecycle: Lifecycle) -> None:
        labelled(lifecycle, label)
        agent = await lifecycle.run(spec(**({} if said is None else {"type": said})))
        assert agent_view(lifecycle.host, agent).type == wanted
        wrong = [text for text in agent.record.warnings if TYPE_LABEL in text]
        assert len(wrong) == (label not in (None, "", "task", "dialogue", "learning"))

    play(tmp_path, story)


def test_applying_the_same_document_again_changes_nothing(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle) -> None:
        labelled(lifecycle, "dialogue")
        applier = Applier(lifecycle)

        async def applied(**fields: Any) -> list[str]:
            return [result.action for result in await applier.apply([spec(**fields)], dry_run=False)]

        assert await applied() == ["created"]
        assert await applied() == ["unchanged"]
        assert await applied(type="learning") == ["updated"]
        assert await applied() == ["updated"]
        agent = lifecycle.host.agents.named("default", "a")
        assert agent is not None and agent.record.spec.type == "dialogue" and agent.live

    play(tmp_path, story)


def test_a_type_that_is_taken_away_is_the_images_again(tmp_path: Path) -> None:
    async def story(lifecycle: Lifecycle) -> None:
        labelled(lifecycle, "learning")
        changer = Applier(lifecycle).changer
        agent = await lifecycle.run(spec(type="task"))
        await changer.change_agent(agent, {"type": None}, dry_run=False)
        assert agent.record.spec.type == "learning"
        await changer.change_agent(agent, {"weight": 7}, dry_run=False)
        assert (agent.record.spec.type, agent.record.spec.weight) == ("learning", 7)

    play(tmp_path, story)


def image(**labels: str) -> Image:
    config = ImageConfig(labels=labels)
    return Image(digest="d", name="a", names=("a",), created=0, size=0, entries=0, config=config, layers=())


def test_an_image_shows_its_type_or_why_it_has_none() -> None:
    assert image_view(image()).type == "" and image_view(image()).notes == []
    assert image_view(image(**{TYPE_LABEL: "learning"})).type == "learning"
    shown = image_view(image(**{TYPE_LABEL: "\x1brobot"}))
    assert shown.type == "" and "\\x1brobot" in shown.notes[0] and "counts for nothing" in shown.notes[0]


def test_what_somebody_writes_must_be_a_type() -> None:
    imagetypes.check({})
    imagetypes.check({TYPE_LABEL: "dialogue", "other": "x"})
    with pytest.raises(AgentosError) as caught:
        imagetypes.check({TYPE_LABEL: "robot"})
    assert caught.value.code == "invalid-label" and "dialogue" in caught.value.hint
    imagetypes.check({TYPE_LABEL: "robot"}, {TYPE_LABEL: "robot"})
    with pytest.raises(AgentosError):
        imagetypes.check({TYPE_LABEL: "robot"}, {TYPE_LABEL: "other"})
