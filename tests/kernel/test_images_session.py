"""One worker, many jobs: errors that end a job, errors that end the worker, and what is left when it is over."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.session import Session
from agentos_native.images.unpack.messages import Progress
from tests.images import needs_root

pytestmark = needs_root


def small_tar(name: str = "f") -> int:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    source = os.memfd_create("archive")
    os.write(source, out.getvalue())
    os.lseek(source, 0, os.SEEK_SET)
    return source


def fill(session: Session, place: Path) -> None:
    place.mkdir()
    tree, source = os.open(place, os.O_RDONLY | os.O_DIRECTORY), small_tar()
    try:
        session.unpack(source, tree, kind="tar")
    finally:
        os.close(source)
        os.close(tree)


def workers() -> list[int]:
    return [
        int(child)
        for listed in Path("/proc/self/task").glob("*/children")
        for child in listed.read_text().split()
        if b"images.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_jobs_of_several_threads_wait_for_each_other(tmp_path: Path) -> None:
    with Session() as session:
        threads = [threading.Thread(target=fill, args=(session, tmp_path / str(number))) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(workers()) == 1
    assert workers() == []
    assert all((tmp_path / str(number) / "f").exists() for number in range(4))


def test_a_dead_worker_is_an_error_of_each_job_after(tmp_path: Path) -> None:
    with Session() as session:
        (starter,) = workers()
        (warden,) = Path(f"/proc/{starter}/task/{starter}/children").read_text().split()
        os.kill(int(warden), signal.SIGKILL)
        for number in range(2):
            with pytest.raises(AgentosError) as caught:
                fill(session, tmp_path / str(number))
            assert caught.value.code == "import-failed"
            assert caught.value.hint
    assert workers() == []


def test_an_interrupted_job_ends_the_worker(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    tree = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    def give_up(progress: Progress) -> None:
        raise KeyboardInterrupt

    block = tarfile.TarInfo("f").tobuf()

    def pour() -> None:
        for _ in range(100):
            os.write(write_end, block)
            time.sleep(0.01)

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        with Session() as session:
            with pytest.raises(KeyboardInterrupt):
                session.unpack(read_end, tree, kind="tar", progress=give_up)
            with pytest.raises(AgentosError, match="worker"):
                fill(session, tmp_path / "next")
        assert workers() == []
    finally:
        pouring.join()
        for descriptor in (read_end, write_end, tree):
            os.close(descriptor)


def test_what_is_measured_changes_with_one_bit(tmp_path: Path) -> None:
    with Session() as session:
        fill(session, tmp_path / "t")
        tree = os.open(tmp_path / "t", os.O_RDONLY | os.O_DIRECTORY)
        before = session.measure(tree)
        (tmp_path / "t/f").write_bytes(b"\1")
        assert session.measure(tree) != before
        os.close(tree)


def test_a_worker_that_is_killed_while_it_starts_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: also when a child that it has just made holds its end of the socket."""
    stop = threading.Event()
    start = Session._start
    pauses = iter(range(10**9))

    def start_and_kill(session: Session, theirs: socket.socket) -> subprocess.Popen[bytes]:
        process = start(session, theirs)

        def kill() -> None:
            while not stop.is_set() and process.poll() is None and not _children(process.pid):
                pass  # its first child is the one that makes the user namespace
            time.sleep(next(pauses) % 5 * 0.0003)
            process.kill()

        threading.Thread(target=kill).start()
        return process

    monkeypatch.setattr(Session, "_start", start_and_kill)
    done = []

    def begin() -> None:
        for _ in range(6):
            with contextlib.suppress(AgentosError):
                Session().close()  # it may have been quicker
            done.append(True)

    beginner = threading.Thread(target=begin, daemon=True)
    beginner.start()
    beginner.join(60)
    stop.set()
    assert len(done) == 6


def _children(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return ""
