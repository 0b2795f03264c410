"""tools/demo: three tenants and eight agents share a machine, and each gets what it is entitled to.

Theory of operation
    On a machine whose cgroup v2 tree has the cpu controller the demo runs in place: it starts a supervisor of its own
    (own state, own socket), imports the image ``python``, builds the agents' images from the Dockerfiles in rootfs/,
    applies policies/smart-home.yaml, and measures three phases.
    Elsewhere the kernel cannot enforce CPU shares; then the same demo runs in the virtual machine of tools/vm, with a
    copy of this working tree and of the image.

    What an agent is entitled to is computed here, from the policy files and the load that the demo itself switches;
    what it got is the kernel's own account (usage_usec in cpu.stat of its cgroup). The supervisor is asked for neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentos_native.errors import AgentosError
from demo import phases, table

ROOT = Path(__file__).resolve().parents[3]
VM_SECONDS = 900


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only the phases, as JSON, on standard output")
    parser.add_argument(
        "--window", type=float, default=20.0, metavar="S", help="seconds that each phase is measured (20)"
    )
    parser.add_argument("--in-vm", metavar="IMAGE_TAR", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def say(text: str) -> None:
    """Progress, for people; standard output belongs to the result."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def host_controllers(command: list[str]) -> dict[str, Any]:
    """The ``cgroup`` part of ``agentos-native check -o json``."""
    done = subprocess.run([*command, "check", "-o", "json"], capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout)["cgroup"])
    except (ValueError, KeyError):
        sys.exit(f"error[demo]: agentos-native check failed: {done.stderr.strip()}")


def build_image() -> Path:
    """The tar of the image ``python``, made by its recipe (or found from an earlier run)."""
    say("root filesystem 'python' (Debian and Python; about a minute the first time)")
    done = subprocess.run([ROOT / "rootfs" / "build", "python"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def in_virtual_machine(image: Path, arguments: argparse.Namespace) -> int:
    """Run this same program in the virtual machine; its output and status are ours."""
    with tempfile.TemporaryDirectory(prefix="agentos-demo-") as folder:
        share = Path(folder, "image")
        share.mkdir()
        os.link(image, share / "python.tar") if _same_device(image, share) else _copy(image, share / "python.tar")
        inner = ["tools/demo", "--in-vm", "/share/image/python.tar", "--window", str(arguments.window)]
        command = [
            ROOT / "tools" / "vm",
            "run",
            "--steady",
            "--timeout",
            str(VM_SECONDS),
            "--memory",
            "2G",
            "--share",
            share,
            "--",
            *inner,
        ]
        return subprocess.run([*command, *(["--json"] if arguments.json else [])], check=False).returncode


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)


def run_here(command: list[str], image: Path, arguments: argparse.Namespace) -> int:
    """All three phases on this machine; 0 when every share is within the tolerance."""
    results = phases.run(ROOT, command, image, arguments.window, say, None if arguments.json else table.show)
    ok = all(phase.ok for phase in results)
    if arguments.json:
        print(json.dumps({"phases": [phase.as_dict() for phase in results], "ok": ok}))
    else:
        table.verdict(results, ok)
    return 0 if ok else 1


def main() -> int:
    arguments = parse(sys.argv[1:])
    if os.geteuid() != 0:
        print("error[not-root]: the demo makes namespaces and cgroups\n  hint: run it as root", file=sys.stderr)
        return 125
    if arguments.in_vm:
        return run_here(["agentos-native"], Path(arguments.in_vm), arguments)
    command = [str(ROOT / ".venv/bin/agentos-native")]
    image = build_image()
    cgroup = host_controllers(command)
    if "cpu" in cgroup.get("controllers", []):
        return run_here(command, image, arguments)
    say(
        f"this machine's cgroup layout is '{cgroup.get('layout')}' and its v2 tree has no cpu controller, so the kernel"
        " here cannot divide processors by cpu.weight; running in a virtual machine instead"
    )
    return in_virtual_machine(image, arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AgentosError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
