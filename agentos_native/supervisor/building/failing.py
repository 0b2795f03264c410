"""How a build fails: which step, where in the Dockerfile, how it ended, what it said last, and what can be done."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from agentos_native.errors import AgentosError
from agentos_native.images.build.model import Run
from agentos_native.supervisor.registry import Record

_WANTS_NETWORK: Final = re.compile(
    r"resolv|bad address|connect|name or service not known|network is (?:unreachable|down)|fetch|no matching distr",
    re.IGNORECASE,
)
"""What programs say when there is no network."""


def error(step: str, how: str, run: Run, network: str, last: Iterable[str] = (), *, kept: bool = False) -> AgentosError:
    """``build-failed``. `step` says which one; its details are for programs. `kept`: what it left is an image now."""
    output = list(last)
    hints = []
    if network == "none" and any(_WANTS_NETWORK.search(line) for line in output):
        hints.append("RUN has no network unless the build is given one: --network egress")
    if not kept:
        hints.append("--debug-shell opens a shell in what the step left")
    details = {"argv": list(run.argv), "output": output, "network": network}
    return AgentosError("build-failed", step, how, "\n".join(hints), details=details)


def ended(
    step: str, record: Record, run: Run, network: str, last: Iterable[str], *, kept: bool = False
) -> AgentosError:
    """Of a RUN that has ended, but not well."""
    how = f"exit status {record.exit_status}"
    if record.exit_status is None:
        how = "how it ended is not known"
    elif record.oom_killed:
        how += " (killed by the kernel: out of memory)"
    elif record.reason not in {"exited", ""}:
        how += f" ({record.reason})"
    failure = error(step, how, run, network, last, kept=kept)
    failure.details["exit_status"] = record.exit_status
    return failure


def not_started(step: str, why: AgentosError, run: Run, network: str) -> AgentosError:
    """Of a RUN whose program could not be executed."""
    failure = error(step, f"its program was not started: {why.what}", run, network)
    if why.code == "unenforceable":
        failure.hint = "build without that limit; `agentos-native check` says how this host can enforce it"
    elif why.hint:
        failure.hint = why.hint
    failure.details["cause"] = why.code
    return failure


@contextlib.contextmanager
def at(file: str, line: int) -> Iterator[None]:
    """Errors in here are about this line of the Dockerfile."""
    try:
        yield
    except AgentosError as caught:
        where = f"{file}:{line}"
        if where not in caught.where:
            caught.where = f"{where}: {caught.where}" if caught.where else where
        raise
