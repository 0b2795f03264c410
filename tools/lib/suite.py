"""tools/test: every test, in stages that all run, whatever fails.

  tools/test                everything
  tools/test PATTERN...     PATTERN: a stage (lint, unit, kernel, escape, vm), a file or test id under tests/,
                            or else an expression for pytest's -k

lint    ruff, mypy --strict, the import contracts, the Vagrantfile
unit    tests/unit, without privileges
kernel  tests/kernel, as root on this machine's kernel, in network and mount namespaces of their own
escape  tests/escape, attacks from inside a sandbox, likewise
vm      tests/vm, in one boot of the virtual machine, where cgroup v2 has its controllers

AGENTOS_TESTS_REQUIRED=1 makes a skipped test a failed one. The last line is the totals; the status is 1 when anything
failed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
REQUIRED = os.environ.get("AGENTOS_TESTS_REQUIRED", "0")
OUTCOME = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed)\b")
# A test that leaks a packet must not reach a real network, nor a leaked mount this machine's tree.
ISOLATED = ("unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
PYTEST = (str(BIN / "python"), "-m", "pytest", "-p", "no:cacheprovider")
# Emulated, everything takes about twenty times as long.
IN_VM = ("pytest", "-p", "no:cacheprovider", "--timeout", "900")
VM_SECONDS = 3000


@dataclass(frozen=True)
class Stage:
    """Commands that run one after another, `seconds` being the limit of each; a `folder` makes it a pytest stage."""

    name: str
    seconds: float
    commands: Sequence[Sequence[str]]
    folder: str = ""


def stages() -> list[Stage]:
    lint = [
        [str(BIN / "ruff"), "check", "."],
        [str(BIN / "mypy"), "--no-error-summary"],
        ["env", "MYPYPATH=tools/lib", str(BIN / "mypy"), "--strict", "--no-error-summary", "-p", "vm", "-m", "suite"],
        [str(BIN / "lint-imports"), "--no-cache"],
        ["vagrant", "validate", "--ignore-provider"],
    ]
    boot = ["tools/vm", "run", "--steady", "--timeout", str(VM_SECONDS), "--memory", "3G"]
    boot += ["--env", f"AGENTOS_TESTS_REQUIRED={REQUIRED}"]
    return [
        Stage("lint", 300, lint),
        Stage("unit", 1800, [PYTEST], "tests/unit"),
        Stage("kernel", 2400, [[*ISOLATED, *PYTEST]], "tests/kernel"),
        Stage("escape", 1200, [[*ISOLATED, *PYTEST]], "tests/escape"),
        Stage("vm", VM_SECONDS + 300, [[*boot, "--", *IN_VM]], "tests/vm"),
    ]


@dataclass
class Selection:
    """What the command line asks for."""

    names: list[str]
    paths: list[str]
    words: list[str]

    @classmethod
    def of(cls, patterns: Sequence[str], known: Sequence[str]) -> Selection:
        names = [item for item in patterns if item in known]
        paths = [item for item in patterns if item not in known and Path(item.split("::")[0]).exists()]
        return cls(names, paths, [item for item in patterns if item not in names and item not in paths])

    def arguments(self, stage: Stage) -> list[str] | None:
        """pytest's arguments in this stage, or none when nothing in it was asked for."""
        words = ["-k", " or ".join(self.words)] if self.words else []
        paths = [path for path in self.paths if f"{path}/".startswith(f"{stage.folder}/")]
        if stage.name in self.names:
            return [stage.folder, *words] if stage.folder else []
        if not stage.folder:
            return None if self.names or self.paths or self.words else []
        if paths:
            return [*paths, *words]
        return [stage.folder, *words] if not self.names and not self.paths else None


def run_limited(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a command, passing its output on; its status (124 when the time was over) and the output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    lines = []
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                lines.append(line)
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    finally:
        timer.cancel()
    if expired.is_set():
        print(f"the time limit of {seconds:.0f} s has passed", flush=True)
        return 124, "".join(lines)
    return status, "".join(lines)


def count(output: str) -> Counter[str]:
    """The numbers of pytest's last line."""
    for line in reversed(output.splitlines()):
        found = OUTCOME.findall(line)
        if found and " in " in line:
            totals: Counter[str] = Counter()
            for number, name in found:
                totals["failed" if name.startswith("error") else name] += int(number)
            return totals
    return Counter()


def run_stage(stage: Stage, arguments: Sequence[str]) -> Counter[str]:
    """The totals of one stage; a command that is no test runner counts as one test."""
    totals: Counter[str] = Counter()
    if stage.folder and not any(Path(stage.folder).rglob("test_*.py")):
        print(f"error[test]: {stage.folder} holds no tests")
        return Counter(failed=1)
    for command in stage.commands:
        if not stage.folder:
            print(f"$ {Path(command[0]).name} {' '.join(command[1:])}", flush=True)
        status, output = run_limited([*command, *arguments], stage.seconds)
        found = count(output) if stage.folder else Counter()
        nothing_matched = status == 5 and bool(arguments[1:])
        if status and not nothing_matched and not found["failed"]:
            print(f"error[test]: {Path(command[0]).name} ended with status {status}", flush=True)
            found["failed"] += 1
        elif not stage.folder:
            found["passed"] += 1
        totals += found
    return totals


def main(patterns: Sequence[str]) -> int:
    if "-h" in patterns or "--help" in patterns:
        print(__doc__)
        return 0
    everything = stages()
    selection = Selection.of(patterns, [stage.name for stage in everything])
    totals: Counter[str] = Counter()
    started = time.monotonic()
    for stage in everything:
        arguments = selection.arguments(stage)
        if arguments is None:
            continue
        began = time.monotonic()
        print(f"=== {stage.name}  (after {began - started:.0f} s)", flush=True)
        found = run_stage(stage, arguments)
        totals += found
        print(f"--- {stage.name}: {sentence(found)} in {time.monotonic() - began:.0f} s\n", flush=True)
    print(sentence(totals))
    return 1 if totals["failed"] or not totals["passed"] else 0


def sentence(totals: Counter[str]) -> str:
    extra = "".join(f", {totals[name]} {name}" for name in ("skipped", "xfailed") if totals[name])
    return f"{totals['passed']} passed, {totals['failed']} failed{extra}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
