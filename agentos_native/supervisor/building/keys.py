"""What a layer of a build is known by. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from agentos_native.images.build.model import Run
from agentos_native.images.build.scope import PROXY_ARGS
from agentos_native.images.model import Layer


def run_key(below: Sequence[Layer], run: Run, network: str) -> str:
    """RUN: its program, environment (ENV and the ARGs that it sees), user, directory, and whether it has a network.

    Proxies are how it gets there, not what it gets: they do not count.
    """
    seen = tuple((name, value) for name, value in run.env if name not in PROXY_ARGS)
    return _key(below, "run", msgspec.structs.replace(run, env=seen, network=network))


def copy_key(below: Sequence[Layer], content: str) -> str:
    """COPY and ADD: `content` stands for the instruction and what it takes (`context.content_key`, `origin_key`)."""
    return _key(below, "copy", content)


def directory_key(below: Sequence[Layer], path: str) -> str:
    """WORKDIR that makes its directory."""
    return _key(below, "directory", path)


def _key(below: Sequence[Layer], *what: object) -> str:
    """The layers below are in it by digest: a step that made the same tree as last time changes nothing above it."""
    canonical = msgspec.json.encode([[layer.digest for layer in below], *what], order="sorted")
    return f"step:sha256:{hashlib.sha256(canonical).hexdigest()}"
