"""The root disk and the kernel: a minimal Debian, provisioned by ``tools/provision``, and the files that boot it.

Theory of operation (needs root, for mmdebstrap's chroot)
  1. pip on this machine builds wheels of everything the package depends on, in the versions of ``.venv``. The guest
     therefore needs no network of its own and no compiler, and its numba reads the cache that numba here wrote.
  2. mmdebstrap makes the root directory from the mirror that this machine's own apt uses; its last hook runs
     ``tools/provision``.
  3. The kernel package is unpacked but not installed: its post-installation script would build a general initramfs.
  4. ``mkfs.ext4 -d`` turns the directory into a disk; a second-long initramfs holds the only driver that is a module.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .cache import built, die, digest, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DISK_SIZE = "8G"  # sparse
COMPILING = ("numba", "llvmlite", "numpy")
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis")
# The Debian whose Python is the one of .venv: the C extension and the compiled kernels are copied from there.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
# tools/vm needs cgroup v2 as of 6.12, which Debian 12 has in its backports.
KERNEL_SUITES = {"bookworm": "bookworm-backports", "trixie": "trixie"}


@dataclass(frozen=True)
class Base:
    """What a boot needs, all in one directory of the cache."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.path / "kernel"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"


def run(*argv: str | Path, **kwargs: object) -> None:
    """Run a program whose output matters only when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        sys.stderr.buffer.write(done.stdout[-4000:])
        die(f"{Path(argv[0]).name} failed with status {done.returncode}: {' '.join(map(str, argv))[:300]}")


def requirements() -> list[str]:
    """What pyproject.toml says the package needs, and the tools that tests/vm needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tests = project["optional-dependencies"]["test"]
    tests = [item for item in tests if re.split(r"[<>=!~ \[]", item)[0] in TEST_TOOLS]
    return [*project["dependencies"], *tests]


def constraints() -> str:
    """The versions in .venv, one per line."""
    freeze = [sys.executable, "-m", "pip", "--disable-pip-version-check", "freeze", "--exclude-editable"]
    lines = subprocess.run(freeze, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if "==" in line and not line.startswith("agentos"))


def pinned() -> str:
    """The versions that the compiled kernels depend on, by directory names: ``pip freeze`` takes half a second."""
    site = Path(sys.prefix) / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    return " ".join(sorted(path.name for name in COMPILING for path in site.glob(f"{name}-*.dist-info")))


def mirror(suite: str) -> str:
    """The Debian mirror that apt of this machine uses, or mmdebstrap's own default (an empty string)."""
    listing = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)", "Created-By: Packages"]
    try:
        lines = subprocess.run(listing, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    sites = [line.split("|")[1] for line in lines if line.startswith("Debian|") and "security" not in line]
    return f"deb {sites[0]} {suite} main" if sites else ""


def base() -> Base:
    """The base for this checkout's dependencies, built when it is not in the cache yet."""
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        die(
            f"the virtual machine has no Python {sys.version_info[0]}.{sys.version_info[1]}",
            "make .venv with Python 3.11 or 3.13: rm -r .venv; PYTHON=/usr/bin/python3.11 tools/setup --for test",
        )
    scripts = [ROOT / "tools/provision", HERE / "init", HERE / "initramfs-init", HERE / "base.py"]
    key = digest(suite, "\n".join(requirements()), pinned(), *scripts)
    return Base(built("base", key, lambda path: _build(path, suite)))


def _build(path: Path, suite: str) -> None:
    if os.geteuid() != 0:
        die("building the disk image needs root", "sudo tools/vm build")
    missing = [name for name in ("mmdebstrap", "mkfs.ext4", "zstd", "cpio", "depmod") if shutil.which(name) is None]
    if missing:
        die(f"not installed: {', '.join(missing)}", "tools/setup --for test")
    wheels, root = path / "wheels", path / "root"
    say(f"building the base image ({suite}); this takes 3-5 minutes, once")
    _build_wheels(wheels)
    _build_root(root, wheels, suite)
    say("installing the kernel, making the disk")
    version = _install_kernel(path, root)
    _make_initrd(path, root, version)
    make_disk(root, path / "disk.img", DISK_SIZE)
    shutil.rmtree(wheels)
    shutil.rmtree(root)


def _build_wheels(wheels: Path) -> None:
    say("wheels of the Python dependencies")
    wheels.mkdir()
    pins = wheels / "constraints.txt"
    pins.write_text(constraints(), encoding="utf-8")
    (wheels / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-build-isolation")
    run(*pip, "-w", wheels, "-c", pins, "-r", wheels / "requirements.txt")


def _build_root(root: Path, wheels: Path, suite: str) -> None:
    say("Debian's packages and the Python dependencies")
    provision = "cd /provision && ./provision --wheels wheels --tests --peers <wheels/requirements.txt"
    hooks = [
        'mkdir -p "$1/provision" "$1/agentos"',
        f'cp -r "{wheels}" "$1/provision/wheels"',
        f'cp "{ROOT}/tools/provision" "$1/provision/"',
        f'chroot "$1" sh -c "{provision}"',
        'rm -r "$1/provision"',
        f'install -m 755 "{HERE}/init" "$1/sbin/agentos-init"',
        'mkdir -p "$1/kernel"',
        # The newest kernel that the suite's meta-package depends on, unpacked only.
        f'chroot "$1" sh -ec "{_kernel_script(KERNEL_SUITES[suite])}"',
    ]
    sources = mirror(suite)
    extra = mirror(KERNEL_SUITES[suite])
    if KERNEL_SUITES[suite] != suite and extra:
        sources = f"{sources}\n{extra}"
    run(
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        "--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
        *(f"--customize-hook={hook}" for hook in hooks),
        suite, root, *([] if not sources else ["-"]),
        input=sources.encode(),
    )  # fmt: skip


def _kernel_script(suite: str) -> str:
    release = f"-o APT::Default-Release={suite}"
    find = f"apt-cache {release} depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -1"
    return f"cd /kernel; apt-get {release} download -q \\$({find}); dpkg -x *.deb /kernel"


def _install_kernel(path: Path, root: Path) -> str:
    """Move the unpacked kernel to its places; the modules uncompressed, since decompressing is slow in emulation."""
    unpacked = root / "kernel"
    (modules,) = (unpacked / "lib/modules").iterdir()
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    for module in modules.rglob("*.ko.xz"):
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()
    (path / "kernel").write_bytes(unpack_kernel(image.read_bytes()))
    (root / "lib/modules").mkdir(exist_ok=True)
    shutil.move(modules, root / "lib/modules" / modules.name)
    shutil.rmtree(unpacked)
    run("depmod", "-b", root, modules.name)
    return modules.name


def unpack_kernel(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst: ``payload_offset`` and ``payload_length``).

    QEMU enters it directly (PVH), which saves the decompression: half of the boot under emulation.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):  # zstd; the last four bytes are the unpacked size
        return subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload[:-4])
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    return image


def _make_initrd(path: Path, root: Path, version: str) -> None:
    tree = path / "initrd.d"
    for name in ("bin", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    shutil.copy(HERE / "initramfs-init", tree / "init")
    shutil.copy(root / f"lib/modules/{version}/kernel/drivers/block/virtio_blk.ko", tree / "virtio_blk.ko")
    names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    cpio = ("cpio", "-o", "-H", "newc", "--quiet")
    with open(path / "initrd", "wb") as archive:
        subprocess.run(cpio, cwd=tree, input=names.encode(), stdout=archive, check=True)
    shutil.rmtree(tree)


def make_disk(tree: Path, disk: Path, size: str) -> None:
    """An ext4 disk of ``size`` (sparse) with the contents of ``tree``; no journal, since changes are thrown away."""
    disk.unlink(missing_ok=True)
    options = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard")
    run("mkfs.ext4", *options, "-d", tree, disk, size)
