"""tools/vm: the virtual machine in which cgroup v2 is real.

  tools/vm build [-o DIR]                 build it; DIR gets kernel, initrd and disk.img with this package in it
  tools/vm run [options] -- COMMAND...    boot it with a copy of the working tree at /agentos and run COMMAND there
  tools/vm run [options]                  the same without a command: the service, with the console here

The command's output and exit status are its own; the status is 124 when the time limit has passed, and 125 when the
machine itself failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import qemu
from .base import ROOT, Base, base, run
from .cache import die, say
from .session import Session, interactive
from .stage import Job, directory_disk, tree_disk


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    command: list[str] = []
    if "--" in argv:
        argv, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tools/vm", description=__doc__, formatter_class=plain)
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="build the disk image")
    build.add_argument("-o", "--output", type=Path, metavar="DIR", help="write kernel, initrd and disk.img to DIR")
    boot = actions.add_parser("run", help="boot it, and run a command")
    boot.add_argument("--timeout", type=float, metavar="S", help="seconds from the start of the boot")
    boot.add_argument("--memory", default="2G", metavar="M", help="as qemu's -m (2G)")
    boot.add_argument("--cpus", type=int, default=2, metavar="N", help="virtual processors (2)")
    several: dict[str, Any] = {"type": Path, "action": "append", "default": []}
    boot.add_argument("--disk", **several, metavar="FILE", help="attach a disk image; its changes are dropped")
    boot.add_argument("--share", **several, metavar="DIR", help="a copy of a directory, at /share/NAME")
    boot.add_argument("--steady", action="store_true", help="under emulation, time is counted in instructions")
    boot.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command")
    boot.add_argument("--out", type=Path, metavar="DIR", help="what the command leaves in /out comes back to DIR")
    args = parser.parse_args(argv)
    if args.action == "run" and args.out and not command:
        parser.error("--out needs a command")
    return args, command


def build(args: argparse.Namespace) -> int:
    """``tools/vm build``: the base, and with ``-o`` a copy of it that has the package installed."""
    found = base()
    say(f"base: {found.path}")
    if args.output:
        _write_image(found, args.output)
    return 0


def _write_image(found: Base, output: Path) -> None:
    """The image that a device is flashed with: the base disk, and the package inside it."""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("kernel", "initrd", "disk.img"):
        run("cp", "--sparse=always", "--reflink=auto", found.path / name, output / name)
    with tempfile.TemporaryDirectory(prefix="agentos-vm-") as folder:
        mount = Path(folder, "mount")
        mount.mkdir()
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
        (wheel,) = Path(folder).glob("agentos_native-*.whl")
        run("mount", "-o", "loop", output / "disk.img", mount)
        try:
            shutil.copy(wheel, mount / "tmp")
            pip = ("chroot", mount, "/opt/agentos/bin/pip", "install", "-q", "--no-deps", "--no-index")
            run(*pip, f"/tmp/{wheel.name}")
            (mount / "tmp" / wheel.name).unlink()
            (mount / "usr/local/bin/agentos-native").unlink(missing_ok=True)
            (mount / "usr/local/bin/agentos-native").symlink_to("/opt/agentos/bin/agentos-native")
        finally:
            run("umount", mount)
    say(f"image: {output}/disk.img, kernel, initrd; kernel arguments: {qemu.KERNEL_ARGUMENTS}")


def boot(args: argparse.Namespace, command: list[str]) -> int:
    """``tools/vm run``."""
    found = base()
    for path in (*args.disk, *args.share):
        if not path.exists():
            die(f"{path}: no such file or directory")
    names = {f"share{number}": path.resolve().name for number, path in enumerate(args.share)}
    if len(set(names.values())) < len(names):
        die("two --share directories have the same name")
    # A pid namespace or a container may have little in /tmp; the disks are sparse and small.
    with tempfile.TemporaryDirectory(prefix="agentos-vm-") as folder:
        disks = [("tree", Path(folder, "tree.img"))]
        tree_disk(Job(command, args.env, names, args.out is not None), disks[0][1])
        for serial, path in zip(names, args.share, strict=True):
            disks.append((serial, Path(folder, f"{serial}.img")))
            directory_disk(path.resolve(), disks[-1][1])
        disks += [(f"disk{number}", path.resolve()) for number, path in enumerate(args.disk)]
        machine = qemu.Machine(found, args.memory, args.cpus, disks, args.steady)
        kvm = qemu.kvm_works(found)
        if not command:
            return interactive(machine, kvm=kvm)
        session = Session(machine, kvm, Path(folder, "console"))
        status = session.run(args.timeout)
        if args.out and session.archive.tell():
            session.unpack(args.out)
        return status


def main(argv: list[str]) -> int:
    args, command = parse(argv)
    try:
        return build(args) if args.action == "build" else boot(args, command)
    except subprocess.CalledProcessError as failed:
        die(f"{failed.cmd[0]} failed with status {failed.returncode}")
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
