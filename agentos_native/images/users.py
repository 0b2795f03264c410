"""``user:`` of a spec, looked up in the image's own /etc/passwd and /etc/group, which nobody vouches for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Image
from agentos_native.kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_FILE_MAX: Final = 4 << 20
_GROUPS_MAX: Final = 64


def resolve_user(image: Image, user: str | None) -> tuple[int, int, tuple[int, ...]]:
    """The uid, gid and supplementary groups of `user`, as numbers inside the agent.

    Args:
        user: ``uid``, ``uid:gid``, ``name``, ``name:group``; None or "" for the image's own, which is root unless it
        says otherwise.

    A uid that the image does not know is taken as it is, with gid 0; a name that it does not know is an error. With
    an explicit group there are no supplementary ones.

    Raises:
        AgentosError: ``user-not-found``, ``invalid-user``.
    """
    wanted = user or image.config.user
    if not wanted:
        return 0, 0, _memberships(image, "root", 0)
    who, colon, group = wanted.partition(":")
    if not who or (colon and not group) or "\0" in wanted:
        raise AgentosError("invalid-user", f"{wanted!r} is not a user", hint="uid, uid:gid, name or name:group")
    name, uid, gid = _user(image, who)
    if group:
        return uid, _group(image, group), ()
    return uid, gid, _memberships(image, name, gid)


def _user(image: Image, who: str) -> tuple[str, int, int]:
    """Login name ("" if unknown), uid and primary gid."""
    number = _number(who)
    for fields in _lines(image, "etc/passwd", 4):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (uid == number if number is not None else fields[0] == who):
            return fields[0], _in_range(uid, who), _in_range(gid, who)
    if number is None:
        raise AgentosError(
            "user-not-found", f"the image has no user {who!r}", "/etc/passwd", "a number works without an entry there"
        )
    return "", _in_range(number, who), 0


def _group(image: Image, group: str) -> int:
    number = _number(group)
    if number is not None:
        return _in_range(number, group)
    for fields in _lines(image, "etc/group", 3):
        gid = _number(fields[2])
        if fields[0] == group and gid is not None:
            return _in_range(gid, group)
    raise AgentosError(
        "user-not-found", f"the image has no group {group!r}", "/etc/group", "a number works without an entry there"
    )


def _memberships(image: Image, name: str, gid: int) -> tuple[int, ...]:
    if not name:
        return ()
    found = {
        number
        for fields in _lines(image, "etc/group", 4)
        if name in fields[3].split(",")
        and (number := _number(fields[2])) is not None
        and number < ID_RANGE
        and number != gid
    }
    return tuple(sorted(found)[:_GROUPS_MAX])


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _in_range(number: int, what: str) -> int:
    if number >= ID_RANGE:
        raise AgentosError("invalid-user", f"{what!r} is id {number}", hint=f"an agent has ids 0 to {ID_RANGE - 1}")
    return number


def _lines(image: Image, path: str, fields: int) -> Iterator[list[str]]:
    """The lines of `path` that have `fields` fields or more; none when the image has no such file."""
    for line in _read(image, path).decode("utf-8", "replace").splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields:
            yield parts


def _read(image: Image, path: str) -> bytes:
    """The file `path` of the topmost layer that has it; links in it lead nowhere but into the layer."""
    for layer in reversed(image.layers):
        root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = openat2(
                root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            )
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            continue
        finally:
            os.close(root)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            content = file.read(_FILE_MAX + 1)
        if len(content) > _FILE_MAX:
            raise AgentosError("invalid-user", f"/{path} of the image has more than {_FILE_MAX} bytes")
        return content
    return b""
