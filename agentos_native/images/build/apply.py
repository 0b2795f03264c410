"""COPY, ADD and WORKDIR become files of a staged layer: the confined worker does it, here it is told what."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import overlay
from agentos_native.images.build.heads import HEAD, is_tar
from agentos_native.images.build.model import Copy
from agentos_native.images.build.selecting import Selected, Selection
from agentos_native.images.session import ProgressCallback, Session, Unpacked
from agentos_native.images.unpack.messages import CopyItem
from agentos_native.images.unpack.reading import Reading, Root, stamp_of
from agentos_native.images.users import owner_of


def copy_files(
    session: Session,
    copy: Copy,
    selection: Selection,
    *,
    source_fd: int,
    tree_fd: int,
    base_fd: int,
    layers: Sequence[Path] = (),
    progress: ProgressCallback | None = None,
) -> Unpacked:
    """Fill the empty staged directory `tree_fd` with what a COPY or ADD brings.

    Args:
        source_fd: the root that `selection` was made from, the context's or another stage's.
        base_fd: the stage so far, merged, with ids as on disk; -1 for scratch.
        layers: the same as directories, lowest first: an archive is unpacked by a child that sees them with other ids.

    Raises:
        AgentosError: ``copy-failed``, ``context-changed``, ``user-not-found``, ``invalid-user``, and as
        `Session.unpack`.
    """
    chown = owner_of(base_fd, copy.chown) if copy.chown else None if copy.origin else (0, 0)
    archives = _archives(session, selection) if copy.unpack else []
    items = [_item(each, stamped=not copy.origin) for each in selection.entries if each not in archives]
    items += [CopyItem(b"", os.fsencode(name), True, content=content.encode()) for name, content in copy.files]
    prefix = os.fsencode(copy.destination) if items or archives else b""
    result = session.copy(
        source_fd,
        tree_fd,
        items,
        prefix=prefix + b"/" if archives else prefix,
        base_fd=base_fd,
        chown=chown,
        chmod=copy.chmod,
        progress=progress,
    )
    notes = (*selection.notes, *result.notes)
    if archives:
        if copy.chown or copy.chmod:
            hint = "unpack it in a RUN and change it there, or make the archive with the right ones"
            raise AgentosError(
                "copy-failed", "ADD does not change owners or modes of what is in an archive", copy.sources[0], hint
            )
        for each in archives:
            result = _unpack(session, selection.root, each, tree_fd, copy.destination, layers, progress)
            notes += result.notes
    return msgspec.structs.replace(result, notes=notes)


def make_workdir(session: Session, path: str, *, tree_fd: int, base_fd: int) -> Unpacked | None:
    """The directory `path` in the staged `tree_fd`, root's and 0755; None when the base has it.

    Raises:
        AgentosError: ``copy-failed``; something else is in its place.
    """
    base = Root(base_fd)
    wanted = os.fsencode(path)
    try:
        found = base.find(base.resolve(wanted))
    except OSError as error:
        raise AgentosError("copy-failed", f"WORKDIR cannot be made: {error.strerror}", repr(path)) from None
    if (found is not None and found.is_directory) or not wanted.strip(b"/"):
        return None
    return session.copy(-1, tree_fd, [], prefix=wanted + b"/", base_fd=base_fd)


def _item(selected: Selected, *, stamped: bool) -> CopyItem:
    # a directory's own stamp changes with every file that comes or goes, which is no harm once they are selected
    checked = stamped and not stat.S_ISDIR(selected.status.st_mode)
    return CopyItem(
        selected.source,
        selected.destination,
        selected.single,
        stamp_of(selected.status) if checked else (),
    )


def _archives(session: Session, selection: Selection) -> list[Selected]:
    """The sources of an ADD that are tars; only those that are named, not what is in a directory."""
    reading = Reading()
    found = []
    for each in selection.entries:
        if each.single and stat.S_ISREG(each.status.st_mode):
            with reading.opened(selection.root, each.source) as (descriptor, _):
                head = os.pread(descriptor, HEAD, 0)
            if is_tar(session, head):
                found.append(each)
    return found


def _unpack(
    session: Session,
    root: int,
    selected: Selected,
    tree_fd: int,
    destination: str,
    layers: Sequence[Path],
    progress: ProgressCallback | None,
) -> Unpacked:
    base_fd = overlay.view(layers, session.userns_fd) if layers else -1
    try:
        with Reading().opened(root, selected.source) as (descriptor, status):
            if stamp_of(status) != stamp_of(selected.status):
                raise AgentosError("context-changed", "an archive changed while the build read it")
            return session.unpack(
                descriptor, tree_fd, kind="tar", base_fd=base_fd, prefix=destination.strip("/"), progress=progress
            )
    finally:
        if base_fd >= 0:
            os.close(base_fd)
