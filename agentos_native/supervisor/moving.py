"""Giving an agent's files to other ids, when its supervisor has got another block than the one it was made in."""

from __future__ import annotations

import os
import stat

from agentos_native.supervisor.admission import ID_RANGE


def shift_owners(directory: str, old_base: int, new_base: int) -> int:
    """Move every owner and group within the agent's old range to the same place in the new one; gives how many files.

    Nothing runs in there, and nothing is followed: names are looked up below directory fds, symbolic links are changed
    themselves. What has been moved already is left alone, so a shift that was interrupted can be done again.
    """

    def moved(number: int) -> int:
        return number - old_base + new_base if old_base <= number < old_base + ID_RANGE else number

    count = 0
    for _, directories, files, dir_fd in os.fwalk(directory, follow_symlinks=False):
        for name in [*directories, *files]:
            before = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            uid, gid = moved(before.st_uid), moved(before.st_gid)
            if (uid, gid) == (before.st_uid, before.st_gid):
                continue
            os.chown(name, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISREG(before.st_mode) and before.st_mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(name, stat.S_IMODE(before.st_mode), dir_fd=dir_fd)  # chown(2) has cleared these bits
            count += 1
    return count
