"""Whoever waits for somebody else is woken when that one ends, and does not keep others from working meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentos_native.images.catalog import Catalog
from agentos_native.images.oci import exporting
from agentos_native.images.oci.exporting import ExportOptions
from agentos_native.supervisor.building.pins import Leased
from agentos_native.supervisor.routes_transfer import _Export

PATIENCE = 20


def test_exports_that_nobody_reads_keep_no_thread_from_others() -> None:
    class Store:
        def export(self, _ref: str, out: int, _options: ExportOptions) -> None:
            os.write(out, bytes(1 << 20))  # more than a pipe takes

    async def story() -> None:
        store: Any = Store()
        exports = [_Export(store, "image", ExportOptions()) for _ in range(40)]  # more than any pool has threads
        try:
            for each in exports:
                assert await asyncio.wait_for(each.next(), PATIENCE)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), PATIENCE) == "done"
        finally:
            for each in exports:
                with contextlib.suppress(BrokenPipeError):
                    await each.finish()

    asyncio.run(story())


def test_a_packer_is_ended_when_nobody_reads_its_archive() -> None:
    """It may be busy with a layer for minutes before it writes again."""
    status, theirs = os.pipe()
    reader, out = os.pipe()
    packer = subprocess.Popen(["sleep", "1000"], pass_fds=(theirs,))
    os.close(theirs)
    said: list[bytes] = []
    waiting = threading.Thread(target=lambda: said.append(exporting._read_all(status, out, packer)), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    os.close(reader)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert packer.wait(PATIENCE) != 0
    assert msgspec.json.decode(said[0])["code"] == "export-failed"
    os.close(out)
    os.close(status)


@pytest.mark.parametrize("cancellations", [1, 3])
def test_a_cancelled_build_waits_for_its_thread_and_interrupts_it_in_a_full_pool(
    tmp_path: Path, cancellations: int
) -> None:
    """However often it is cancelled: the lease ends in the context in which that thread still works."""
    catalog = Catalog(tmp_path)
    begun, interrupted, free = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        interrupted.wait(PATIENCE)
        free.wait(PATIENCE)

    async def story(threads: ThreadPoolExecutor) -> None:
        async def build() -> None:
            async with Leased(catalog, threads) as leased:
                await leased.call(work, interrupt=interrupted.set)

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait, PATIENCE)
        task = asyncio.create_task(build())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0.05)
        while not interrupted.is_set():
            assert not busy.done()
            await asyncio.sleep(0.01)
        assert not task.done()
        assert len(os.listdir(catalog.disk.leases)) == 1
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        await busy
        assert os.listdir(catalog.disk.leases) == []

    with ThreadPoolExecutor(2) as threads:
        asyncio.run(story(threads))
