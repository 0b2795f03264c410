"""What a running service does with images: starts from forty layers and from one, and a build with nothing to do."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentos_native.images.catalog import Catalog
from agentos_native.images.model import ImageConfig, Layer, Manifest
from tools.benches import memory
from tools.benches.machine import read_processor_times, shares
from tools.benches.place import Place
from tools.benches.report import Row, judge
from tools.benches.rounds import Comparison, alternate, executed_p50
from tools.benches.service import IMAGE, ApiContender, Service, agentos_native, service
from tools.benches.stats import median

LAYERS: Final = 40
LAYERS_BUDGET: Final = 1.3
BUILD_BUDGET: Final = 0.3
STARTS: Final = 24
_ONE, _MANY = "1 layer", f"{LAYERS} layers"
_DOCKERFILE: Final = f"""FROM {IMAGE}
ARG GREETING=hello
ENV LANG=C.UTF-8
WORKDIR /app
COPY . /app
RUN echo $GREETING > /app/greeting
CMD ["/bin/cat", "/app/greeting"]
"""


# -- starts


def started(here: Place, rounds: int, progress: Callable[[str], None]) -> list[Row]:
    """Starts through the API, of the same files in one layer and in forty."""
    with service(here, "image-layers") as running:
        catalog = Catalog(running.state / "state/images")
        _commit(catalog, here.image, "one", 1)
        _commit(catalog, here.image, "many", LAYERS)
        contenders = [ApiContender(running, _ONE, "one"), ApiContender(running, _MANY, "many")]
        counts = {contender.name: STARTS for contender in contenders}
        return started_rows(alternate(contenders, 1, rounds, counts, progress=lambda text: progress(f"layers: {text}")))


def started_rows(comparison: Comparison) -> list[Row]:
    """Request to exec of each, and the ratio that is held to the budget."""
    rows = []
    for name in (_ONE, _MANY):
        batches, reason = comparison.to_show(name)
        value = median([executed_p50(batch.times) for batch in batches]) / 1e3
        rows.append(Row(f"start from {name}: request to exec p50", value, "ms", reason=reason))
    ratios, unclean = comparison.compare(_MANY, _ONE, lambda mine, theirs: executed_p50(mine) / executed_p50(theirs))
    verdict = judge(ratios, LAYERS_BUDGET, lost=comparison.lost(_MANY, _ONE), otherwise=unclean)
    rows.append(
        Row(
            f"start from {_MANY}: request to exec p50, ratio",
            rows[-1].value,
            "ms",
            _ONE,
            verdict.middle,
            LAYERS_BUDGET,
            verdict.ok,
            verdict.reason,
            verdict.spread,
        )
    )
    return rows


def _commit(catalog: Catalog, tree: Path, name: str, layers: int) -> None:
    """An image whose files are spread over its layers, each of which changes a file of the one below."""
    parts = [tree.parent / f"{name}-{number}" for number in range(layers)]
    shutil.copytree(tree, parts[0], symlinks=True)
    for number in range(LAYERS):
        part = parts[number % layers]
        (part / "var").mkdir(parents=True, exist_ok=True)
        (part / f"var/{number}").write_text(str(number))
        (part / "var/last").write_text(str(number))
    stack = []
    with catalog.lease():
        for part in parts:
            with catalog.staging() as staged:
                shutil.copytree(part, staged.path, symlinks=True, dirs_exist_ok=True)
                layer = Layer(digest=f"sha256:{secrets.token_hex(32)}", size=0, entries=0)
                stack.append(catalog.add_layer(staged, layer))
        catalog.commit(name, Manifest(config=ImageConfig(), layers=tuple(stack), created=time.time()))


# -- builds


def built(here: Place, rounds: int, progress: Callable[[str], None]) -> list[Row]:
    """The whole command, with a supervisor running; all of its steps are known from a build before."""
    with service(here, "image-build") as running, _context(here) as context:
        command = [agentos_native(), "image", "build", "-t", "app", "--progress", "plain", str(context)]
        environment = {**os.environ, "AGENTOS_SOCKET": running.socket}
        first = _timed(command, environment)
        clean, everything = [], []
        for number in range(rounds + 1):
            progress(f"build: {number} of {rounds}")
            before, used = read_processor_times(), _used(running)
            taken = _timed(command, environment)
            if number:
                everything.append(taken)
                if shares(before, read_processor_times(), _used(running) - used).clean:
                    clean.append(taken)
    return built_rows(first, clean, everything)


def built_rows(first: float, clean: list[float], everything: list[float]) -> list[Row]:
    """Seconds of the first build and of those after it."""
    lost = f"{len(everything) - len(clean)} of {len(everything)} dropped for steal or other load"
    verdict = judge(clean, BUILD_BUDGET, lost=lost, otherwise=median(everything))
    return [
        Row("image build, first", first, "s"),
        Row(
            "image build, nothing changed",
            verdict.middle,
            "s",
            budget=BUILD_BUDGET,
            ok=verdict.ok,
            reason=verdict.reason,
            spread=verdict.spread,
        ),
    ]


@contextmanager
def _context(here: Place) -> Iterator[Path]:
    context = here.directory / "context"
    context.mkdir()
    for number in range(100):
        (context / f"module{number}.py").write_text(f"NUMBER = {number}\n" * 50)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    try:
        yield context
    finally:
        shutil.rmtree(context)


def _timed(command: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _used(running: Service) -> float:
    """Processor seconds of the service and of the commands that have ended."""
    times = os.times()
    own = times.children_user + times.children_system
    return own + memory.processor_seconds(running.processes(), children=True)
