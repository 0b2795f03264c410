"""The system call filter: simulated against the policy for every number, linted, and tried on this kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.sandbox import policy
from agentos_native.sandbox.policy import ALLOW, DEFAULT, KILL_PROCESS, ArgumentIs, Policy, Rule, refuse
from agentos_native.sandbox.seccomp import compile_filter, lint, number_of

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
EPERM, ENOSYS, EAFNOSUPPORT = refuse(errno.EPERM), refuse(errno.ENOSYS), refuse(errno.EAFNOSUPPORT)


def simulate(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel's classic BPF machine returns for one system call (seccomp_data of seccomp(2))."""
    values = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", struct.unpack("i", struct.pack("I", number))[0], arch, 0, *values)
    code = [struct.unpack_from("=HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator, place = 0, 0
    for _ in range(len(code)):
        operation, if_true, if_false, operand = code[place]
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                place += operand
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x35:
                place += if_true if accumulator >= operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")
    raise AssertionError("the program does not end")


def decide(rules: Policy, call: str | None, arguments: tuple[int, ...]) -> int:
    """The policy read directly, without any BPF."""
    if call is None:
        return rules.default
    if call in rules.allow:
        return ALLOW
    if call in rules.deny:
        return rules.deny[call]
    mine = [rule for rule in rules.rules if rule.call == call]
    if not mine:
        return rules.default
    values = [*arguments, 0, 0, 0, 0, 0, 0]
    for rule in mine:
        if all((values[test.arg] >> (32 * test.high)) & test.mask == test.value for test in rule.tests):
            return rule.action
    return rules.otherwise.get(call, EPERM)


def names_by_number(machine: str) -> dict[int, str]:
    """Every call that the default policy names, by its number."""
    named = [*DEFAULT.allow, *DEFAULT.deny, *{rule.call for rule in DEFAULT.rules}]
    return {number: call for call in named if (number := number_of(call, machine)) is not None}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_number_has_the_fate_that_the_policy_says(machine: str) -> None:
    program, names = compile_filter(machine=machine), names_by_number(machine)
    interesting = [
        (),
        (1,),
        (2, 0x5412),
        (16, 3, 0),
        (16, 3, 9),
        (40,),
        (0x10000000,),
        (1 << 32,),
        (0xFFFFFFFF,),
        (2**64 - 1,) * 6,
    ]
    for number in range(1024):
        for arguments in interesting:
            expected = decide(DEFAULT, names.get(number), arguments)
            assert simulate(program, ARCH[machine], number, *arguments) == expected, (
                number,
                names.get(number),
                arguments,
            )


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_calls_that_arguments_decide(first: int, second: int, third: int) -> None:
    program = compile_filter(machine="x86_64")
    for call in policy.ARGUMENTS_DECIDE:
        number = number_of(call, "x86_64")
        assert number is not None
        arguments = (first, second, third)
        assert simulate(program, ARCH["x86_64"], number, *arguments) == decide(DEFAULT, call, arguments)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("number", [0x40000000, 0x40000000 + 1, 0x400001FF, 0xFFFFFFFF])
def test_foreign_numbers_kill(machine: str, number: int) -> None:
    assert simulate(compile_filter(machine=machine), ARCH[machine], number) == KILL_PROCESS


def test_foreign_architecture_kills() -> None:
    i386 = 0x40000003
    assert simulate(compile_filter(machine="x86_64"), i386, 20) == KILL_PROCESS
    assert simulate(compile_filter(machine="x86_64"), ARCH["aarch64"], 0) == KILL_PROCESS


@pytest.mark.parametrize("junk", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5423])
def test_terminal_injection_is_refused_whatever_the_upper_half_says(junk: int, request_number: int) -> None:
    ioctl = number_of("ioctl", "x86_64")
    assert ioctl is not None
    assert simulate(compile_filter(machine="x86_64"), ARCH["x86_64"], ioctl, 0, request_number | junk) == EPERM


@pytest.mark.parametrize("family", range(64))
def test_socket_families(family: int) -> None:
    socket = number_of("socket", "x86_64")
    assert socket is not None
    answer = simulate(compile_filter(machine="x86_64"), ARCH["x86_64"], socket, family, 3, 0)
    assert answer == (ALLOW if family in {1, 2, 10, 16} else EAFNOSUPPORT)


@pytest.mark.parametrize(
    "call",
    ["io_uring_setup", "bpf", "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd", "mount", "umount2",
     "move_mount", "fsopen", "setns", "pivot_root", "chroot", "kexec_load", "open_by_handle_at", "init_module",
     "mount_setattr"],
)  # fmt: skip
def test_what_security_names_is_refused(call: str) -> None:
    for machine, arch in ARCH.items():
        number = number_of(call, machine)
        assert number is not None
        assert simulate(compile_filter(machine=machine), arch, number) == EPERM


def test_clone3_is_said_not_to_exist() -> None:
    assert simulate(compile_filter(machine="x86_64"), ARCH["x86_64"], 435) == ENOSYS


def test_filter_is_small() -> None:
    """It is compiled by the kernel at each start."""
    assert len(compile_filter(machine="x86_64")) // 8 < 300


def test_the_default_policy_has_no_careless_line() -> None:
    assert lint(DEFAULT) == []


@pytest.mark.parametrize(
    ("careless", "problem"),
    [
        (replace(DEFAULT, allow=(*DEFAULT.allow, "socket")), "socket: allowed whatever its arguments are"),
        (replace(DEFAULT, reasons={}), "ptrace: dangerous, and allowed without a reason"),
        (
            replace(DEFAULT, reasons=dict(DEFAULT.reasons, ptrace=" ")),
            "ptrace: dangerous, and allowed without a reason",
        ),
        (replace(DEFAULT, allow=(*DEFAULT.allow, "raed")), "raed: no such system call"),
        (replace(DEFAULT, allow=(*DEFAULT.allow, "mount")), "mount: named twice"),
        (replace(DEFAULT, default=ALLOW), "default: everything that is not named is allowed"),
        (replace(DEFAULT, rules=(*DEFAULT.rules, Rule("clone", (ArgumentIs(6, 0),)))), "clone: no argument 6"),
        (replace(DEFAULT, otherwise={"read": ALLOW}), "read: an otherwise without a rule"),
    ],
)
def test_careless_policies_are_refused(careless: Policy, problem: str) -> None:
    assert problem in lint(careless)
    with pytest.raises(AgentosError) as caught:
        compile_filter(careless)
    assert caught.value.code == "seccomp-policy"
    assert problem in caught.value.hint


def test_an_empty_policy_allows_nothing() -> None:
    program = compile_filter(Policy(allow=()), "x86_64")
    assert {simulate(program, ARCH["x86_64"], number) for number in range(600)} == {ENOSYS}


def filtered(action: Callable[[ctypes.CDLL], int]) -> int:
    """The errno of `action` (0: it returned no -1) in a child of this process under the default filter."""
    program = compile_filter()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(program)
        fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
        libc.prctl(38, 1, 0, 0, 0)
        if libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) != 0:
            os._exit(255)
        ctypes.set_errno(0)
        result = action(libc)
        os._exit(ctypes.get_errno() if result == -1 else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda libc: libc.getpid(), 0),
        (lambda libc: libc.socket(2, 1, 0), 0),
        (lambda libc: libc.socket(38, 5, 0), errno.EAFNOSUPPORT),
        (lambda libc: libc.unshare(0x10000000), errno.EPERM),
        (lambda libc: libc.ioctl(0, ctypes.c_ulong(0x5412 | 1 << 40), b"x"), errno.EPERM),
        (lambda libc: libc.syscall(425, 8, 0), errno.EPERM),
        (lambda libc: libc.syscall(999), errno.ENOSYS),
    ],
)
def test_the_kernel_agrees(action: Callable[[ctypes.CDLL], int], expected: int) -> None:
    assert filtered(action) == expected


def test_threads_and_processes_still_start() -> None:
    """libc falls back from clone3 to clone."""

    def action(libc: ctypes.CDLL) -> int:
        child = libc.fork()
        if child == 0:
            os._exit(0)
        return -1 if child < 0 else 0

    assert filtered(action) == 0
