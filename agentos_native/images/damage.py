"""Layers of which it is known that they are not what they were, until somebody brings what they were.

::

    damaged/<hex>    an empty file: `verify` found the layer <hex> changed

A layer is only read again when somebody asks for that (`verify`), so a mark is the price of what a normal import need
not pay for. A marked layer is in the store for those who have it, but no key leads to it: an import, a pull or a build
makes it anew, and what it makes takes the place of the damaged one. Both trees change places in one moment (renameat2),
before which the mark is there with the damaged layer and after which it may be there with a good one for a while; then
the layer is made once more, or verified, without need.

A running agent has the damaged tree mounted, whose files must not go: it is asked who runs, before the exchange and
once more after it. An agent that looked at the layer in between had begun to start before the second question.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agentos_native import faults
from agentos_native.errors import AgentosError
from agentos_native.images.disk import Disk, sync_directory
from agentos_native.images.records import Records, hex_of
from agentos_native.kernel.libc import AT_FDCWD, libc_call

_RENAME_EXCHANGE: Final = 2  # renameat2(2), since Linux 3.15
_NAMED: Final = 3

Running = Callable[[], Mapping[str, Sequence[str]]]
"""Digests of the images of agents that run or begin to, and those agents."""


class Damage:
    """The marks of one store; changed under its lock."""

    def __init__(self, disk: Disk, records: Records) -> None:
        self._disk = disk
        self._records = records
        self.running: Running = dict

    def _path(self, digest: str) -> Path:
        return self._disk.damaged / hex_of(digest)

    def marked(self, digest: str) -> bool:
        """Whether the layer is known to be damaged."""
        return os.path.exists(self._path(digest))

    def mark(self, digest: str) -> None:
        """It is."""
        self._disk.write(self._path(digest), b"")

    def clear(self, digest: str) -> None:
        """It is not, or it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(digest))

    def replace(self, digest: str, good: Path, place: Path, held: bool) -> None:
        """Put the tree `good` where the damaged layer is, which is where `good` was then.

        Args:
            held: whether a lease of somebody else has the layer.

        Raises:
            AgentosError: ``layer-in-use``; nothing has changed.
        """
        if held:
            what = f"layer {digest[7:19]} is damaged, and a build, a verification or an export works with it"
            raise AgentosError("layer-in-use", what, hint="try again when that has ended")
        self._refuse_running(digest)
        _exchange(good, place)
        try:
            self._refuse_running(digest)
        except BaseException:
            _exchange(good, place)
            raise
        faults.point("store.layer-replaced")
        sync_directory(place.parent)
        sync_directory(good.parent)

    def _refuse_running(self, digest: str) -> None:
        agents = sorted({agent for image, held in self.running().items() if self._has(image, digest) for agent in held})
        if agents:
            named = ", ".join(agents[:_NAMED]) + (f" and {len(agents) - _NAMED} more" if len(agents) > _NAMED else "")
            what = f"layer {digest[7:19]} is damaged, and cannot be replaced while agents run from it: {named}"
            raise AgentosError("layer-in-use", what, hint=f"stop them first: agentos-native stop {' '.join(agents)}")

    def _has(self, image: str, layer: str) -> bool:
        """Also where nobody knows what the image consists of."""
        try:
            return any(each.digest == layer for each in self._records.read(image).layers)
        except AgentosError:
            return True


def _exchange(one: Path, other: Path) -> None:
    libc_call("renameat2", AT_FDCWD, str(one), AT_FDCWD, str(other), _RENAME_EXCHANGE, path=str(other))
