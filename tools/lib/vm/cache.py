"""Things built once and kept outside the tree, each in a directory named by the hash of what it was built from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

KEPT_BUILDS = 2  # of each kind: this checkout's, and the one before it


def die(what: str, hint: str = "") -> NoReturn:
    """End with an error in the project's form; status 125 is "this program failed", never the command's own status."""
    print(f"error[vm]: {what}", file=sys.stderr)
    for line in hint.splitlines():
        print(f"  hint: {line}", file=sys.stderr)
    raise SystemExit(125)


def say(what: str) -> None:
    print(f"vm: {what}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """``$AGENTOS_CACHE``, else ``agentos-native`` in the user's cache directory; made when missing."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(os.environ.get("AGENTOS_CACHE") or f"{home}/agentos-native")
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(*inputs: str | bytes | Path) -> str:
    """A short hash over texts and files; the length of each input goes in too, so that none runs into the next."""
    state = hashlib.sha256()
    for item in inputs:
        data = item.read_bytes() if isinstance(item, Path) else item.encode() if isinstance(item, str) else item
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache; says so when another process makes it wait."""
    with open(cache_dir() / f"{name}.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works on {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory ``<kind>-<key>`` of the cache. ``build`` fills a temporary one, renamed when it is complete."""
    path = cache_dir() / f"{kind}-{key}"
    if path.exists():
        os.utime(path)
        return path
    with locked(kind):
        if path.exists():
            return path
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        started = time.monotonic()
        build(partial)
        partial.rename(path)
        say(f"{kind} built in {time.monotonic() - started:.0f} s")
        _forget_old(kind)
    return path


def _forget_old(kind: str) -> None:
    """Remove all but the newest builds; a machine that runs from an older one keeps its files open."""
    kept = sorted(cache_dir().glob(f"{kind}-*[0-9a-f]"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[KEPT_BUILDS:]:
        shutil.rmtree(path, ignore_errors=True)
