"""How a pull looks while it goes: bars on a terminal, lines elsewhere, warnings in any case."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TextIO

from agentos_native.cli.images.progress import printable
from agentos_native.cli.output import size

if TYPE_CHECKING:
    from agentos_native.wire.images import ImageEvent

_EVERY: Final = 5.0
"""Seconds between two lines about one thing under way."""
_WARNING: Final = "WARNING:"

Show = Callable[["ImageEvent"], None]


@contextlib.contextmanager
def display(stream: TextIO, *, quiet: bool) -> Iterator[Show]:
    """What is called with the events of a pull, but for the last; it writes to `stream`."""
    if quiet:
        yield lambda event: _warn(stream, event)
    elif stream.isatty():
        with _bars(stream) as show:
            yield show
    else:
        lines = _Lines(stream)
        yield lines.show
        lines.end()


def _warn(stream: TextIO, event: ImageEvent) -> None:
    if event.kind == "note" and event.text.startswith(_WARNING):
        print(printable(event.text), file=stream, flush=True)


class _Lines:
    """A line when something begins or is done, and now and then in between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._what = ""
        self._due = 0.0
        self._layer = ""

    def show(self, event: ImageEvent) -> None:
        if event.kind == "progress":
            self._progress(event)
        elif event.kind == "step":
            self._flush()
            self._layer = f"[{event.step}/{event.steps}] {_short(event.text)}"
        elif event.kind == "cached":
            self._say(f"{self._layer} is here already")
            self._layer = ""
        elif event.kind == "note":
            self._say(event.text if event.text.startswith(_WARNING) else f"note: {event.text}")

    def end(self) -> None:
        """The pull is over."""
        self._flush()

    def _flush(self) -> None:
        """The layer of which it was not said that it is here is unpacked."""
        if self._layer:
            layer, self._layer = self._layer, ""
            self._say(f"{layer} is unpacked")

    def _progress(self, event: ImageEvent) -> None:
        if event.what.startswith("layer"):
            self._flush()
        now = time.monotonic()
        if event.what == self._what and event.done < event.total and now < self._due:
            return
        self._what, self._due = event.what, now + _EVERY
        if event.total and event.what.startswith("fetching"):
            self._say(f"{event.what} {size(event.done)} of {size(event.total)}")

    def _say(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[Show]:
    """One bar for what is fetched, one for each layer while it is unpacked; all gone at the end."""
    from rich import progress
    from rich.console import Console

    console = Console(file=stream)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def show(event: ImageEvent) -> None:
            if event.kind == "note":
                warning = event.text.startswith(_WARNING)
                style = "bold red" if warning else "yellow"
                console.print(printable(event.text), style=style, markup=False, highlight=False)
            elif event.kind == "progress":
                what = "fetching" if event.what.startswith("fetching") else printable(event.what)
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=None)
                bars.update(tasks[what], completed=event.done, total=event.total or None)

        yield show


def _short(digest: str) -> str:
    """``layer sha256:…`` as people read it."""
    before, _, digits = digest.rpartition("sha256:")
    return f"{before}{digits[:12]}"
