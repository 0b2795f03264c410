"""``python -m tools.benches NAME``: what ``tools/bench`` executes."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from tools.benches import place
from tools.benches.report import print_json, print_table

BENCHES: Final = {
    "start": "request to exec and starts per second, against a C program, bubblewrap and the OCI runtimes",
    "idle": "memory and processor time of 0, 100 and 500 idle agents",
    "tick": "one turn of the tick over 1000 groups, against bare preads",
    "startup": "from the supervisor's start to its first allocation, and the compiled engine's arrival and memory",
    "loop": "one mixed load under the loop, static weights, Kubernetes' way and nothing",
    "alloc": "the allocator's engines against two passes over memory, and against HiGHS",
    "queue": "one decision while 100, 10 000 and 100 000 starts wait",
    "image": "importing against tar and umoci, starts from many layers, memory, a build with nothing to do",
    "cli": "processor time of --help and ps",
}

VM_SECONDS: Final = 3000


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; 0 when no budget is broken, 1 when one is, 125 when it could not be run."""
    options = parse(arguments)
    try:
        if getattr(options, "vm", False):
            return run_in_vm(options.bench, arguments)
        if fetch := getattr(load(options.bench), "fetch", None):
            fetch(options)  # what may need the network, which the namespaces do not have
        place.enter_outer_namespaces(arguments)
        with place.place(place.build_programs(options.programs)) as here:
            rows = load(options.bench).run(options, here, say)
    except place.BenchError as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130
    if options.json:
        print_json(options.bench, rows)
    else:
        print_table(options.bench, rows)
    return 1 if any(row.ok is False for row in rows) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; every benchmark adds its own options."""
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measure the product against its budgets.")
    names = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name, summary in BENCHES.items():
        command = names.add_parser(name, help=summary, description=summary)
        command.add_argument("--json", action="store_true", help="rows as JSON on standard output, and nothing else")
        command.add_argument("--programs", type=Path, help="directory of the compiled C programs")
        if name == next(iter(arguments), ""):
            load(name).add_arguments(command)
    return parser.parse_args(arguments)


def load(name: str) -> ModuleType:
    """A benchmark's module; only the wanted one is imported, since each imports what it measures."""
    return importlib.import_module(f"tools.benches.{name}")


def run_in_vm(bench: str, arguments: Sequence[str]) -> int:
    """The same benchmark inside the virtual machine, with programs compiled here: there is no compiler in there."""
    programs = place.build_programs()
    module = load(bench)
    inside = [word for word in arguments if word != "--vm"]
    for option, value in module.IN_VM.items():
        if option not in inside:
            inside += [option, value]
    inside += ["--programs", f"/share/{programs.name}"]
    vm = [str(place.TREE / "tools" / "vm"), "run", "--timeout", str(VM_SECONDS), "--share", str(programs)]
    vm += ["--env", "AGENTOS_BENCH_VERBOSE=1", *getattr(module, "VM_OPTIONS", ())]
    command = [*vm, "--", "python", "-m", "tools.benches", *inside]
    return subprocess.run(command, check=False).returncode


def say(text: str) -> None:
    """Progress for a person who waits; standard output belongs to the result."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif os.environ.get("AGENTOS_BENCH_VERBOSE"):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
