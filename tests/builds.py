"""What the tests of builds with a real supervisor share; the fixtures are in ``kernel/conftest.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins
from agentos_native.wire.images import BuildRequest, ImageBody, ImageEvent
from tests.supervisors import Place


def events_of(ground: Place, context: Path, text: str | None = None, **fields: Any) -> list[ImageEvent]:
    """Of a build of `context`, whose Dockerfile is `text` unless that is None."""
    if text is not None:
        (context / "Dockerfile").write_text(text)
    return list(ground.client.build_image(BuildRequest(context=str(context), **fields)))


def built(ground: Place, context: Path, text: str | None = None, **fields: Any) -> tuple[ImageBody, list[str]]:
    """The image, and what the steps said."""
    events = events_of(ground, context, text, **fields)
    assert events[-1].kind == "done", AgentosError.from_dict(events[-1].error or {})
    assert events[-1].image is not None
    return events[-1].image, [event.text for event in events if event.kind == "log"]


def failure(events: list[ImageEvent]) -> AgentosError:
    """Why the build failed, which it must have."""
    assert events[-1].kind == "failed"
    return AgentosError.from_dict(events[-1].error or {})


def said(ground: Place, image: str, *command: str, **fields: Any) -> list[str]:
    """The output of a program run from the image, or of the image's own."""
    given = {"name": "look", "image": image, **({"args": list(command)} if command else {}), **fields}
    agent = ground.client.run(agent_from_builtins(given))
    assert ground.client.wait(agent.id, 60).exit_status == 0
    lines = [line.log for line in ground.client.logs(agent.id)]
    ground.client.remove(agent.id)
    return lines
