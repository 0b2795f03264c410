"""Charts as inline SVG: lines and areas over time, coloured by the page's style sheet, so that they follow its theme.

Every chart has a title and a description in words for those who do not see it.
"""

from __future__ import annotations

import html
import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from agentos_native.alloc.waterfill import Floats

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 20
STRIP: Final = 16
"""Height of the band below a chart in which a fraction of the time is drawn."""
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_serial = itertools.count(1)


def escape(text: str) -> str:
    """Text of a user, fit for HTML's text and attributes."""
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), quote=True)


@dataclass(frozen=True)
class Line:
    """One line: `values` with NaN where there is none, `style` a class of the style sheet."""

    values: Floats
    style: str
    kind: Literal["line", "area"] = "line"


@dataclass(frozen=True)
class Span:
    """What the horizontal axis covers: `begin` is a time of the wall clock, `seconds` long, in `parts` equal parts."""

    begin: float
    seconds: float
    parts: int


def number(value: float) -> str:
    """A figure with the digits that matter."""
    if not np.isfinite(value):
        return "–"
    for bound, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def _nice(value: float) -> float:
    """A round number a little above `value`, so that a line at the value is seen."""
    if not value > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10, 20) if step * power >= value * 1.03))


def _runs(values: Floats) -> list[tuple[int, int]]:
    """Where values are: begin and end of each stretch without a NaN."""
    there = np.concatenate([[0], np.isfinite(values).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(there))
    return list(zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True))


def _path(line: Line, parts: int, highest: float, top: float, height: float) -> str:
    """The path data: steps in the middle of parts, so that one part alone can be seen."""
    scale = (WIDTH - LEFT - RIGHT) / max(parts, 1)
    pieces = []
    for begin, end in _runs(line.values[:parts]):
        heights = top + height * (1 - np.clip(line.values[begin:end] / highest, 0, 1))
        x = LEFT + scale * (np.arange(begin, end) + 0.5)
        points = [(x[0] - scale / 2, heights[0]), *zip(x, heights, strict=True), (x[-1] + scale / 2, heights[-1])]
        drawn = "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
        if line.kind == "area":
            base = top + height
            pieces.append(f"M{points[0][0]:.1f} {base:.1f}L{drawn}L{points[-1][0]:.1f} {base:.1f}Z")
        else:
            pieces.append(f"M{drawn}")
    return "".join(pieces)


def _clock(when: float, seconds: float) -> str:
    form = "%H:%M:%S" if seconds < 3600 else "%H:%M" if seconds < 86400 else "%m-%d %H:%M"
    return time.strftime(form, time.localtime(when))


def _axes(span: Span, highest: float, unit: str, bottom: float) -> list[str]:
    drawn = []
    for part in (0.0, 0.5, 1.0):
        y = TOP + (bottom - TOP) * (1 - part)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 4}" y="{y + 3.5:.1f}" text-anchor="end">{number(highest * part)}</text>')
    drawn.append(f'<text x="{LEFT + 3}" y="{TOP + 8}" class="unit">{escape(unit)}</text>')
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + (WIDTH - LEFT - RIGHT) * part
        when = _clock(span.begin + span.seconds * part, span.seconds)
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{when}</text>')
    return drawn


def chart(
    title: str,
    words: str,
    lines: Sequence[Line],
    span: Span,
    unit: str,
    *,
    strip: Floats | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """One chart.

    Args:
        words: the text alternative.
        strip: a fraction (0..1) of each part, drawn as a band below.
        marks: seconds from the beginning, and a style, of vertical ticks along the bottom.
    """
    known = [line.values[: span.parts][np.isfinite(line.values[: span.parts])] for line in lines]
    highest = _nice(max((float(values.max()) for values in known if len(values)), default=0.0))
    bottom = HEIGHT - BOTTOM - (STRIP if strip is not None else 0)
    name = f"c{next(_serial)}"
    drawn = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}t {name}d">',
        f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape(words)}</desc>',
        *_axes(span, highest, unit, bottom),
    ]
    for line in lines:
        data = _path(line, span.parts, highest, TOP, bottom - TOP)
        if data:
            drawn.append(f'<path class="{line.kind} {line.style}" d="{data}"/>')
    if strip is not None:
        band = Line(strip, "pressure", "area")
        drawn.append(f'<path class="area pressure" d="{_path(band, span.parts, 1.0, bottom + 3, STRIP - 4)}"/>')
        drawn.append(f'<path class="grid" d="M{LEFT} {bottom + STRIP - 1}H{WIDTH - RIGHT}"/>')
    for seconds, style in marks:
        x = LEFT + (WIDTH - LEFT - RIGHT) * min(max(seconds / max(span.seconds, 1e-9), 0.0), 1.0)
        drawn.append(f'<path class="mark {style}" d="M{x:.1f} {bottom}v-9"/>')
    drawn.append("</svg>")
    return "".join(drawn)
