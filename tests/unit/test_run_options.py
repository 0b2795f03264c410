"""``run IMAGE …``: what of the image's own command is left."""

from __future__ import annotations

from typing import Any

import pytest

from agentos_native.cli.spec_options import TEXTS, attribute, build
from agentos_native.errors import AgentosError
from agentos_native.images.model import ImageConfig
from agentos_native.supervisor.program import command

IMAGE = ImageConfig(entrypoint=("/entry", "fixed"), cmd=("default",))


def given(**more: Any) -> dict[str, Any]:
    """The options as click gives them when none was given."""
    plain: dict[str, Any] = {attribute(path): None for _, path, _ in TEXTS}
    plain |= dict.fromkeys(("env", "env_file", "volume", "label", "rlimit", "cap_add"), ())
    return plain | dict.fromkeys(("restart", "entrypoint", "allow_unenforced", "read_only")) | more


@pytest.mark.parametrize(
    ("words", "entrypoint", "expected"),
    [
        ((), None, ("/entry", "fixed", "default")),
        (("a", "b"), None, ("/entry", "fixed", "a", "b")),
        ((), "/own", ("/own",)),
        (("a",), "/own", ("/own", "a")),
        (("/bin/sh", "-c", "x"), "", ("/bin/sh", "-c", "x")),
    ],
)
def test_what_runs(words: tuple[str, ...], entrypoint: str | None, expected: tuple[str, ...]) -> None:
    assert command(build("box", words, given(entrypoint=entrypoint), {}), IMAGE) == expected


def test_an_empty_entrypoint_needs_a_command() -> None:
    with pytest.raises(AgentosError, match="nothing is left to run"):
        build("box", (), given(entrypoint=""), {})
