"""From an image of the store to an archive: the store's side of the process that packs it (`packing`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from select import POLLERR, POLLIN, poll
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.images import names
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Image
from agentos_native.images.oci.importing import this_platform
from agentos_native.images.oci.packing import Compression, Format, PackJob
from agentos_native.images.session import printable

_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[3])
_ERROR_MAX: Final = 1 << 16
DEFAULT_REF: Final = "latest"


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an image is packed.

    Args:
        format: ``oci``, an OCI layout, or ``docker``, what ``docker load`` reads (its layers are never compressed).
        compression: of the layers of a layout.
        ref: what it is called there, a tag in a layout and a whole name for Docker; None: as it is called here.
    """

    format: Format = "oci"
    compression: Compression = "gzip"
    ref: str | None = None


def export_image(
    catalog: Catalog,
    ref: str,
    out: int,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - immutable
) -> None:
    """Write the image `ref` to the fd `out`, as a tar. Blocks; the same image and options give the same bytes.

    Memory does not grow with the image, and nothing is left behind but what went to `out`.

    Raises:
        AgentosError: ``image-not-found``, ``image-damaged``, ``image-not-exportable``, ``disk-full``,
        ``export-failed``; `out` then has a part of the archive, without its end.
    """
    with catalog.lease(), contextlib.ExitStack() as opened:
        image = catalog.get(ref)
        if not image.stack:
            raise AgentosError("image-damaged", f"image {ref!r} has no layers", hint="remove it and import it again")
        home = os.open(image.layers[0].parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, home)
        scratch = os.open(catalog.disk.tmp, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, scratch)
        docker = options.format == "docker"
        job = PackJob(
            layers=tuple(layer.name for layer in image.layers),
            home=home,
            scratch=scratch,
            out=out,
            status=-1,
            parent=os.getpid(),
            format=options.format,
            compression="none" if docker else options.compression,
            ref=_called(image, docker) if options.ref is None else options.ref,
            config=image.config,
            history=image.history,
            architecture=image.architecture or this_platform().split("/")[1],
            author=image.author,
        )
        _run(job)


def _called(image: Image, docker: bool) -> str:
    """The image's name here, as the archive wants it."""
    name = image.name or (image.names[0] if image.names else "")
    parts = names.split(name)
    tag = parts.tag or DEFAULT_REF
    if not docker:
        return tag
    return "/".join(filter(None, (parts.host, parts.path))) + f":{tag}" if name else ""


def _run(job: PackJob) -> None:
    errors = os.memfd_create("packer-stderr", os.MFD_CLOEXEC)
    given = os.memfd_create("packer-job", os.MFD_CLOEXEC)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    process: subprocess.Popen[bytes] | None = None
    try:
        os.write(given, msgspec.json.encode(msgspec.structs.replace(job, status=writing)))
        os.lseek(given, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [sys.executable, "-m", "agentos_native.images.oci.packing"],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(job.home, job.scratch, job.out, writing),
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": _PACKAGE_ROOT, "PYTHONNOUSERSITE": "1"},
        )
        os.close(writing)
        writing = -1
        said = _read_all(reading, job.out, process)
        if process.wait() != 0:
            raise _error(said, os.pread(errors, _ERROR_MAX, 0))
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        for descriptor in (errors, given, reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


def _read_all(descriptor: int, out: int, process: subprocess.Popen[bytes]) -> bytes:
    """Until the packer has closed its end, which it does by ending. It is ended when nobody reads the pipe `out` any
    more: it would notice that itself when it writes again, which may be a whole layer later."""
    said = b""
    waiting = poll()
    waiting.register(descriptor, POLLIN)
    waiting.register(out, 0)  # errors are always told
    while True:
        ready = dict(waiting.poll())
        if ready.get(out, 0) & POLLERR:
            process.kill()
            gone = AgentosError("export-failed", "nobody reads the archive any more")
            return msgspec.json.encode(gone.to_dict())
        piece = os.read(descriptor, _ERROR_MAX) if descriptor in ready else b""
        said += piece
        if descriptor in ready and not piece:
            return said


def _error(said: bytes, complaints: bytes) -> AgentosError:
    try:
        error = AgentosError.from_dict(msgspec.json.decode(said, type=dict[str, object]))
    except msgspec.MsgspecError:
        last = complaints.decode("utf-8", "replace").strip()
        return AgentosError(
            "export-failed",
            "the packing process ended without a result",
            printable(last[-300:]),
            "was it killed, or out of memory? see the kernel's log",
        )
    return AgentosError(printable(error.code), printable(error.what), printable(error.where), printable(error.hint))
