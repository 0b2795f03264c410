"""Compiles a `Policy` to a classic BPF program for seccomp(2), and refuses policies that are careless.

libseccomp (by pyseccomp) gives the numbers of the calls on each architecture. The program itself is written here,
for two reasons: libseccomp compares arguments as 64 bits, so a rule that *refuses* a value can be passed by a bit
that the kernel drops; and a balanced search over ranges of numbers is short, which counts because the kernel
compiles the filter, and dry-runs it for every call number, at each start. The unit tests simulate it against the
policy for every number there is.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from agentos_native.errors import AgentosError
from agentos_native.sandbox.policy import ALLOW, ARGUMENTS_DECIDE, DANGEROUS, DEFAULT, KILL_PROCESS, Policy, Rule

_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD, _AND, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_X32_BIT: Final = 0x40000000
_MAX_INSTRUCTIONS: Final = 4096
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_NEWER: Final = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}  # fmt: skip
"""Calls of the unified table (the same number everywhere) that an older libseccomp does not know yet."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand: struct sock_filter"""


class _Leaf(NamedTuple):
    """What happens to the numbers from `first` up to the next leaf."""

    first: int
    code: tuple[Instruction, ...]


def compile_filter(policy: Policy = DEFAULT, machine: str | None = None) -> bytes:
    """The array of struct sock_filter for `machine` (as uname(2) says; default: this one).

    Raises:
        AgentosError: ``seccomp-policy``: the policy is careless or does not fit; nothing may start with it.
    """
    machine = machine or os.uname().machine
    if policy is DEFAULT:
        return _compile_default(machine)
    return _compile(policy, machine)


@functools.cache
def _compile_default(machine: str) -> bytes:
    return _compile(DEFAULT, machine)


def lint(policy: Policy) -> list[str]:
    """Everything that is careless in `policy`, one line each; empty when it may be used."""
    careless = [call for call in policy.allow if _unreasoned(policy, call)]
    problems = [f"{call}: dangerous, and allowed without a reason" for call in careless]
    problems += [f"{call}: allowed whatever its arguments are" for call in policy.allow if call in ARGUMENTS_DECIDE]
    ruled = {rule.call for rule in policy.rules}
    every = [*policy.allow, *ruled, *policy.deny]
    problems += [f"{call}: named twice" for call in sorted({call for call in every if every.count(call) > 1})]
    problems += [f"{call}: no such system call" for call in every if not _exists(call)]
    problems += [f"{call}: a reason without an allowance" for call in policy.reasons if call not in policy.allow]
    problems += [f"{call}: an otherwise without a rule" for call in policy.otherwise if call not in ruled]
    tests = [(rule.call, test.arg) for rule in policy.rules for test in rule.tests]
    problems += [f"{call}: no argument {number}" for call, number in tests if not 0 <= number < 6]
    if policy.default == ALLOW:
        problems.append("default: everything that is not named is allowed")
    return problems


def _unreasoned(policy: Policy, call: str) -> bool:
    return call in DANGEROUS and not policy.reasons.get(call, "").strip()


@functools.cache
def number_of(call: str, machine: str) -> int | None:
    """The number of `call` on `machine`; None when that architecture has no such call."""
    import pyseccomp

    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]
    number = int(pyseccomp.resolve_syscall(arch, call))
    return number if number >= 0 else _NEWER.get(call)


def _exists(call: str) -> bool:
    return any(number_of(call, machine) is not None for machine in _AUDIT_ARCH)


def _compile(policy: Policy, machine: str) -> bytes:
    problems = lint(policy)
    if machine not in _AUDIT_ARCH:
        problems.append(f"no system call numbers for {machine}")
    if problems:
        raise AgentosError("seccomp-policy", "the system call policy cannot be used", "", "\n".join(problems))
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NR_OFFSET),
    ]
    code += _search(_leaves(policy, machine))
    if len(code) > _MAX_INSTRUCTIONS:
        size = f"{len(code)} instructions, and the kernel takes {_MAX_INSTRUCTIONS}"
        raise AgentosError("seccomp-policy", f"the filter has {size}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _leaves(policy: Policy, machine: str) -> list[_Leaf]:
    """Neighbouring numbers with the same fate are one leaf."""
    fates: dict[int, tuple[Instruction, ...]] = {}
    for call, fate in _fates(policy).items():
        number = number_of(call, machine)
        if number is not None:
            fates[number] = fate
    default = (_return(policy.default),)
    leaves = [_Leaf(0, fates.get(0, default))]
    for number in range(1, max(fates, default=0) + 2):
        fate = fates.get(number, default)
        if fate != leaves[-1].code:
            leaves.append(_Leaf(number, fate))
    # x32 calls on x86_64, and nonsense anywhere: never served by this table
    leaves.append(_Leaf(_X32_BIT, (_return(KILL_PROCESS),)))
    return leaves


def _fates(policy: Policy) -> Mapping[str, tuple[Instruction, ...]]:
    fates: dict[str, tuple[Instruction, ...]] = {call: (_return(ALLOW),) for call in policy.allow}
    fates |= {call: (_return(action),) for call, action in policy.deny.items()}
    for call in {rule.call for rule in policy.rules}:
        mine = [rule for rule in policy.rules if rule.call == call]
        fates[call] = _decide(mine, policy.otherwise.get(call, 0x00050001))
    return fates


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _decide(rules: list[Rule], otherwise: int) -> tuple[Instruction, ...]:
    """Rule after rule; a test that fails jumps to the next rule."""
    code: list[Instruction] = []
    for rule in rules:
        block: list[Instruction] = []
        for test in reversed(rule.tests):
            to_next_rule = len(block) + 1  # over the rest of the tests and the return
            part: list[Instruction] = [(_LOAD, 0, 0, _ARGS_OFFSET + 8 * test.arg + 4 * test.high)]
            if test.mask != 0xFFFFFFFF:
                part.append((_AND, 0, 0, test.mask))
            part.append((_IF_EQUAL, 0, to_next_rule, test.value))
            block = part + block
        code += [*block, _return(rule.action)]
    return (*code, _return(otherwise))


def _search(leaves: list[_Leaf]) -> list[Instruction]:
    """A balanced binary search for the call number, which is in the accumulator."""
    if len(leaves) == 1:
        return list(leaves[0].code)
    middle = len(leaves) // 2
    below, above = _search(leaves[:middle]), _search(leaves[middle:])
    pivot = leaves[middle].first
    if len(below) <= 255:
        return [(_IF_AT_LEAST, len(below), 0, pivot), *below, *above]
    return [(_IF_AT_LEAST, 0, 1, pivot), (_JUMP, 0, 0, len(below)), *below, *above]
