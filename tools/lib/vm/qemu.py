"""The emulator: its command line, and whether the processor's own virtualisation works here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import Base
from .cache import cache_dir, die, digest, say

EMULATOR = "qemu-system-x86_64"
KVM_PROBE_SECONDS = 15.0
PORTS = ("control", "stdout", "stderr", "out")
# Without mitigations fork and exec are twice as fast under emulation.
KERNEL_ARGUMENTS = "root=/dev/vda rw panic=-1 mitigations=off nokaslr quiet loglevel=4 console=ttyS0"
# Under emulation the virtual processors' time stamp counters do not agree well enough to be the clock.
# With QEMU 7.2 an interrupt after ``cmpxchg16b`` can find rubbish in EFLAGS: six boots in ten crashed until the kernel
# was told to do without that instruction (programs may not: NumPy refuses a processor that has not got it).
TCG_ARGUMENTS = "clearcpuid=cx16 tsc=unstable clocksource=hpet no_timer_check"


@dataclass(frozen=True)
class Machine:
    """A machine to boot: sizes, disks as (serial, file), and whether emulated time is to follow the instructions."""

    base: Base
    memory: str = "2G"
    cpus: int = 2
    disks: Sequence[tuple[str, Path]] = ()
    steady: bool = False


def emulator() -> str:
    path = shutil.which(EMULATOR)
    if path is None:
        die(f"{EMULATOR} is not installed", "tools/setup --for test")
    return path


def version() -> tuple[int, ...]:
    text = subprocess.run([emulator(), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else (0, 0)


def tcg_arguments(*, steady: bool) -> list[str]:
    """The emulator's arguments; Nehalem is the least processor that NumPy's builds accept.

    ``-icount``: time inside advances by instructions (8 ns each, as on a quiet machine), so what other programs
    take of this processor does not show inside. It needs one thread, and boots more slowly.
    ``thread=single``: until 8.1 (commit deba78709a, "accel/tcg: Always lock pages before translation") one processor
    could run code that another was just patching, and Linux patches itself whenever it flips a static branch.
    """
    threads = "multi" if version() >= (8, 1) and not steady else "single"
    icount = ["-icount", "shift=3,sleep=on"] if steady else []
    return ["-accel", f"tcg,thread={threads},tb-size=512", *icount, "-cpu", "Nehalem"]


def command_line(machine: Machine, *, kvm: bool, console: Sequence[str], ports: dict[str, int]) -> list[str]:
    """The emulator's argument list; ``ports`` maps the virtio-serial ports' names to connected sockets it inherits."""
    accel = ["-accel", "kvm", "-cpu", "host"] if kvm else tcg_arguments(steady=machine.steady)
    append = KERNEL_ARGUMENTS if kvm else f"{KERNEL_ARGUMENTS} {TCG_ARGUMENTS}"
    argv = [
        "setpriv", "--pdeathsig", "KILL", "--",  # however this process ends, no emulator is left behind
        emulator(), "-name", "agentos-native", "-nodefaults", "-no-user-config",
        "-display", "none", "-nic", "none", "-no-reboot",
        "-M", "pc", *accel, "-smp", str(machine.cpus), "-m", machine.memory, *console,
        "-kernel", str(machine.base.kernel), "-initrd", str(machine.base.initrd), "-append", append,
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    ]  # fmt: skip
    for number, (name, fd) in enumerate(ports.items(), 1):
        argv += ["-chardev", f"socket,id={name},fd={fd}"]
        argv += ["-device", f"virtserialport,nr={number},chardev={name},name={name}"]
    for serial, file in (("root", machine.base.disk), *machine.disks):
        name = str(file).replace(",", ",,")
        argv += ["-drive", f"file={name},format=raw,if=none,id={serial},cache=unsafe,snapshot=on"]
        argv += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    return argv


def kvm_works(base: Base) -> bool:
    """Whether a guest boots under KVM. It is tried, once: /dev/kvm can exist and a guest still hang."""
    if os.environ.get("AGENTOS_VM_ACCEL") in ("kvm", "tcg"):
        return os.environ["AGENTOS_VM_ACCEL"] == "kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    uname = os.uname()
    answer = cache_dir() / f"kvm-{digest(str(version()), uname.release, uname.version)}"
    if not answer.exists():
        say("trying whether KVM works here")
        answer.write_text("yes" if _boots_under_kvm(base) else "no", encoding="utf-8")
    return answer.read_text(encoding="utf-8") == "yes"


def _boots_under_kvm(base: Base) -> bool:
    """Boot a kernel that finds no root: it has to come as far as its panic, which ends the machine."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "console")
        argv = command_line(Machine(base), kvm=True, console=["-serial", f"file:{log}"], ports={})
        argv[argv.index("-append") + 1] += " rdinit=/nowhere root=/dev/none"
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(KVM_PROBE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # nothing gentler stops a processor that spins in the guest
        return log.exists() and b"Kernel panic" in log.read_bytes()
