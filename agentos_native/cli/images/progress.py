"""How a build looks while it goes: a live list of steps on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentos_native.cli.output import size

if TYPE_CHECKING:
    from agentos_native.wire.images import ImageEvent

_LINES: Final = 6
"""Last lines of output that the live display shows of the step under way."""
_PER_SECOND: Final = 8


class Display(Protocol):
    """Takes the events of a build. `complete`: a program's output was shown whole."""

    complete: bool

    def show(self, event: ImageEvent) -> None: ...


@contextlib.contextmanager
def display(kind: str, title: str) -> Iterator[Display]:
    """`kind`: ``auto``, ``plain`` or ``none``. Progress goes to standard error."""
    if kind == "none":
        yield _Nothing()
    elif kind == "plain" or not sys.stderr.isatty():
        yield _Plain()
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        live = _Live(title, lambda: console.height)
        with Live(
            get_renderable=live.render, console=console, refresh_per_second=_PER_SECOND, vertical_overflow="visible"
        ):
            yield live
            live.end("left")


def printable(text: str) -> str:
    """A line of a program's output without what a terminal would obey (it is from a sandbox)."""
    shown = text.expandtabs().rpartition("\r")[2]
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)


class _Nothing:
    complete = False

    def show(self, event: ImageEvent) -> None:
        pass


class _Plain:
    """Docker's plain progress: each line begins with its step's number."""

    complete = True

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._step = 0
        self._cached = False

    def show(self, event: ImageEvent) -> None:
        if event.kind in ("step", "done", "failed"):
            self._end(event.kind)
        if event.kind == "step":
            self._step, self._began, self._cached = event.step, time.monotonic(), False
            self._say(f"[{event.step}/{event.steps}] {printable(event.text)}")
        elif event.kind == "cached":
            self._cached = True
            self._say("CACHED")
        elif event.kind == "log":
            self._say(f"{time.monotonic() - self._began:.3f} {printable(event.text)}")
        elif event.kind == "progress":
            self._say(f"{printable(event.what)}, {size(event.done)}")
        elif event.kind == "note":
            self._say(f"note: {printable(event.text)}")

    def _end(self, why: str) -> None:
        """The step under way is over."""
        took = time.monotonic() - self._began
        if self._step and why == "failed":
            self._say(f"ERROR {took:.1f}s")
        elif self._step and not self._cached and took >= 0.05:
            self._say(f"DONE {took:.1f}s")
        self._step = 0

    def _say(self, text: str) -> None:
        print(f"#{self._step} {text}" if self._step else text, file=sys.stderr, flush=True)


class _Step:
    def __init__(self, event: ImageEvent) -> None:
        self.title = f"[{event.step}/{event.steps}] {printable(event.text)}"
        self.began = time.monotonic()
        self.took: float | None = None
        self.cached = self.failed = False
        self.progress = ""
        self.lines: deque[str] = deque(maxlen=_LINES)

    def time(self) -> str:
        if self.cached:
            return "CACHED"
        if self.failed:
            return "ERROR"
        return f"{time.monotonic() - self.began if self.took is None else self.took:.1f}s"


class _Live:
    """The steps with their times, as many as the terminal has room for; below the one under way the last lines of its
    output. At the end all of them."""

    complete = False

    def __init__(self, title: str, height: Callable[[], int]) -> None:
        self._title = title
        self._height = height
        self._ended = False
        self._steps: list[_Step] = []
        self._notes: list[str] = []
        self._began = time.monotonic()

    def show(self, event: ImageEvent) -> None:
        if event.kind in ("step", "done", "failed"):
            self.end(event.kind)
        if event.kind == "step":
            self._steps.append(_Step(event))
        elif event.kind == "note":
            self._notes.append(printable(event.text))
        elif not self._steps:
            return
        elif event.kind == "cached":
            self._steps[-1].cached = True
        elif event.kind == "log":
            self._steps[-1].lines.append(printable(event.text))
        elif event.kind == "progress":
            self._steps[-1].progress = f"{printable(event.what)}, {size(event.done)}"

    def end(self, why: str) -> None:
        """The step under way is over, and with anything but another step the build."""
        if self._steps and self._steps[-1].took is None:
            self._steps[-1].took = time.monotonic() - self._steps[-1].began
            self._steps[-1].failed = why == "failed"
        self._ended = self._ended or why != "step"

    def render(self) -> Any:
        """What is on the screen now."""
        from rich.table import Table
        from rich.text import Text

        shown = Table.grid(padding=(0, 2), expand=True)
        shown.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        shown.add_column(justify="right", no_wrap=True)
        shown.add_row(Text(f"building {self._title}".rstrip(), style="bold"), f"{time.monotonic() - self._began:.1f}s")
        room = len(self._steps) if self._ended else max(self._height() - 2 * _LINES - 3, 3)
        for step in self._steps[-room:]:
            under_way = step.took is None
            style = "cyan" if under_way else "red" if step.failed else "dim" if step.cached else "green"
            shown.add_row(Text(step.title, style=style), Text(step.time(), style=style))
            if under_way:
                for line in (*step.lines, *((step.progress,) if step.progress else ())):
                    shown.add_row(Text("  " + line, style="dim"), "")
        for note in self._notes[-_LINES:]:
            shown.add_row(Text(f"note: {note}", style="yellow"), "")
        return shown
