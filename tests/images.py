"""What the image tests on the live kernel share: trees, tars, user namespaces."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentos_native.images.confine import make_userns

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and user namespaces with real ids need root")

ID_BASE = 0x40000000 + 23 * 65536
"""The id range of an agent that no supervisor on this machine is likely to have."""


def make_tree(path: Path) -> Path:
    """A small root filesystem with all that an image may hold."""
    for directory, mode, owner in (
        ("", 0o755, 0),
        ("etc", 0o755, 0),
        ("home/ada", 0o700, 1000),
        ("var/mail", 0o2775, 8),
    ):
        (path / directory).mkdir(parents=True, exist_ok=True)
        os.chown(path / directory, owner, owner)
        (path / directory).chmod(mode)
    files = {"etc/passwd": ("root:x:0:0:::\nada:x:1000:1000:::\n", 0o644, 0), "home/ada/diary": ("dear", 0o600, 1000)}
    files |= {"bin-su": ("#!", 0o4755, 0), "empty": ("", 0o640, 65535)}
    for name, (content, mode, owner) in files.items():
        (path / name).write_text(content)
        os.chown(path / name, owner, owner)
        (path / name).chmod(mode)
    os.symlink("/etc/passwd", path / "absolute-link")
    os.lchown(path / "absolute-link", 1000, 1000)
    os.link(path / "home/ada/diary", path / "diary")
    os.mkfifo(path / "queue", 0o620)
    with open(path / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(5 << 20)
        file.write(b"end")
    os.setxattr(path / "etc/passwd", "user.note", b"\x00\xff")
    os.setxattr(path / "etc", "user.note", b"directory")
    with open(os.fsencode(path) + b"/caf\xe9", "wb"):
        pass
    return path


def make_tar(tree: Path, target: Path, mode: str = "w") -> Path:
    """GNU tar's own archive of `tree`, with its attributes."""
    flags = {"w": "", "gz": "--gzip", "xz": "--xz", "zst": "--zstd"}[mode]
    status = os.system(f"tar --xattrs --xattrs-include='user.*' --sparse {flags} -C '{tree}' -cf '{target}' .")
    assert status == 0
    return target


def add(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> None:
    """An entry made by hand."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info)


@contextmanager
def userns(base: int = ID_BASE) -> Iterator[int]:
    """A user namespace with the ids of an agent."""
    descriptor = make_userns(base)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def listing(path: Path) -> list[tuple[str, int, int]]:
    """Everything below `path` with inode and mtime: equal before and after what must not change anything."""
    found = []
    for directory, names, files in os.walk(path):
        for name in sorted(names) + sorted(files):
            status = os.lstat(os.path.join(directory, name))
            found.append(
                (
                    os.path.join(directory, name),
                    status.st_ino,
                    status.st_mtime_ns if not os.path.isdir(os.path.join(directory, name)) else 0,
                )
            )
    return sorted(found)
