"""``user:`` of a spec, looked up in the image's own /etc/passwd and /etc/group, which nobody vouches for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Image
from agentos_native.images.overlay import reading
from agentos_native.kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_FILE_MAX: Final = 4 << 20
_GROUPS_MAX: Final = 64


class User(NamedTuple):
    """Ids as inside; `home` is that of /etc/passwd, "" where it says none."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = ""


class _Entry(NamedTuple):
    """What /etc/passwd says of somebody; an empty `name` for a number that it does not know."""

    name: str
    uid: int
    gid: int
    home: str = ""


def resolve_user(image: Image, user: str | None) -> User:
    """Who `user` is inside the agent.

    Args:
        user: ``uid``, ``uid:gid``, ``name``, ``name:group``; None or "" for the image's own, which is root unless it
        says otherwise.

    A uid that the image does not know is taken as it is, with gid 0; a name that it does not know is an error. With
    an explicit group there are no supplementary ones.

    Raises:
        AgentosError: ``user-not-found``, ``invalid-user``.
    """
    wanted = user or image.config.user
    with reading(image.layers) as root:
        return _resolve(root, wanted)


def _resolve(root: int, wanted: str) -> User:
    if not wanted:
        return User(0, 0, _memberships(root, "root", 0), _root_home(root))
    who, colon, group = wanted.partition(":")
    if not who or (colon and not group) or "\0" in wanted:
        raise AgentosError("invalid-user", f"{wanted!r} is not a user", hint="uid, uid:gid, name or name:group")
    entry = _user(root, who)
    if group:
        return User(entry.uid, _group(root, group), (), entry.home)
    return User(entry.uid, entry.gid, _memberships(root, entry.name, entry.gid), entry.home)


def owner_of(root: int, text: str) -> tuple[int, int]:
    """The uid and gid of ``--chown``: ``user``, ``user:group`` or ``:group``, names as in the root directory `root`.

    A number without a group is its own group, as Docker has it. `root` -1: there is nothing to look names up in.

    Raises:
        AgentosError: ``user-not-found``, ``invalid-user``.
    """
    who, colon, group = text.partition(":")
    if (colon and not group) or not text or "\0" in text:
        raise AgentosError("invalid-user", f"{text!r} is no owner", hint="uid, uid:gid, name or name:group")
    for name in (who, group):
        if root < 0 and name and _number(name) is None:
            raise AgentosError("user-not-found", f"there is no {name!r} in an empty image", hint="use a number")
    if not who:
        return 0, _group(root, group)
    number = _number(who)
    uid, gid = (_in_range(number, who),) * 2 if number is not None else _user(root, who)[1:3]
    return uid, _group(root, group) if group else gid


def _root_home(root: int) -> str:
    return next((_home(fields) for fields in _lines(root, "etc/passwd", 4) if _number(fields[2]) == 0), "")


def _home(fields: list[str]) -> str:
    """The sixth field of a line, where it is an absolute path."""
    home = fields[5] if len(fields) > 5 else ""
    return home if home.startswith("/") and "\0" not in home else ""


def _user(root: int, who: str) -> _Entry:
    number = _number(who)
    for fields in _lines(root, "etc/passwd", 4):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (uid == number if number is not None else fields[0] == who):
            return _Entry(fields[0], _in_range(uid, who), _in_range(gid, who), _home(fields))
    if number is None:
        raise AgentosError(
            "user-not-found", f"the image has no user {who!r}", "/etc/passwd", "a number works without an entry there"
        )
    return _Entry("", _in_range(number, who), 0)


def _group(root: int, group: str) -> int:
    number = _number(group)
    if number is not None:
        return _in_range(number, group)
    for fields in _lines(root, "etc/group", 3):
        gid = _number(fields[2])
        if fields[0] == group and gid is not None:
            return _in_range(gid, group)
    raise AgentosError(
        "user-not-found", f"the image has no group {group!r}", "/etc/group", "a number works without an entry there"
    )


def _memberships(root: int, name: str, gid: int) -> tuple[int, ...]:
    if not name:
        return ()
    found = {
        number
        for fields in _lines(root, "etc/group", 4)
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


def _lines(root: int, path: str, fields: int) -> Iterator[list[str]]:
    """The lines of `path` that have `fields` fields or more; none when the image has no such file."""
    for line in _read(root, path).decode("utf-8", "replace").splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields:
            yield parts


def _read(root: int, path: str) -> bytes:
    """The file `path` of the image; links lead nowhere but into the image, and what is no plain file is empty."""
    try:
        found = openat2(root, path, os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return b""
    try:
        # Looked at before it is opened: opening a device does something, and opening a FIFO waits.
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return b""
        with open(f"/proc/self/fd/{found}", "rb") as file:
            content = file.read(_FILE_MAX + 1)
    finally:
        os.close(found)
    if len(content) > _FILE_MAX:
        raise AgentosError("invalid-user", f"/{path} of the image has more than {_FILE_MAX} bytes")
    return content
