"""The error that every wrapper raises is caught by the names that Python programmers use."""

from __future__ import annotations

import errno
import os

import pytest

from agentos_native.kernel import openat2
from agentos_native.kernel.libc import SyscallError


def test_an_errno_with_a_class_of_its_own_is_caught_by_it() -> None:
    root = os.open("/", os.O_PATH)
    try:
        with pytest.raises(FileNotFoundError) as caught:
            openat2.openat2(root, "no/such/file", os.O_PATH)
    finally:
        os.close(root)
    assert isinstance(caught.value, SyscallError)
    assert (caught.value.errno, caught.value.call, caught.value.path) == (errno.ENOENT, "openat2", "no/such/file")


def test_other_errnos_stay_plain() -> None:
    error = SyscallError("mount", "…", "", errno.EINVAL)
    assert type(error) is SyscallError
    assert str(error) == "mount(…): Invalid argument [errno 22]"
