"""keyrings(7): only whether this kernel has them."""

from __future__ import annotations

import errno
import functools
import os
from typing import Final

from agentos_native.kernel.libc import SyscallError, syscall

_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
_GET_KEYRING_ID, _SESSION_KEYRING = 0, -3


@functools.cache
def have_keyrings() -> bool:
    """Whether keyctl(2) exists (CONFIG_KEYS); small kernels leave it out, and then there is nothing to leak."""
    try:
        syscall("keyctl", _KEYCTL, _GET_KEYRING_ID, _SESSION_KEYRING, 0)
    except SyscallError as error:
        return error.errno != errno.ENOSYS
    return True
