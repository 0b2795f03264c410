"""``python -m agentos_native.supervisor``: the launcher's child. Not to be started by hand; see ``agentos-native
supervise``."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import signal
import sys

import prctl

from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.spec import settings
from agentos_native.supervisor.options import Options

LAUNCHER_FD = "AGENTOS_LAUNCHER_FD"
EX_SOFTWARE = 70
"""Tells the launcher to start another supervisor (sysexits.h)."""


def parse(argv: list[str]) -> Options:
    """The options of one supervisor. Raises AgentosError for values that cannot be."""
    parser = argparse.ArgumentParser(prog="agentos_native.supervisor", allow_abbrev=False)
    settings.add_arguments(parser)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--lifeline-fd", type=int, default=-1)
    known = parser.parse_args(argv)
    for fd in (known.ready_fd, known.lifeline_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    return Options(
        settings=settings.from_namespace(known),
        embedded=known.embedded,
        ready_fd=known.ready_fd,
        lifeline_fd=known.lifeline_fd,
    )


def launcher_fd() -> int:
    """The socket that the launcher gave. Raises AgentosError when this was not started by a launcher."""
    text = os.environ.pop(LAUNCHER_FD, "")
    if not text.isdecimal():
        raise AgentosError(
            "no-launcher", "the supervisor is the launcher's child", LAUNCHER_FD, "Start `agentos-native supervise`."
        )
    fd = int(text)
    os.set_inheritable(fd, False)
    return fd


def serve(options: Options, fd: int) -> int:
    """Divide the machine, then do everything else; gives the exit status."""
    # NumPy's linear algebra, which the allocator has no use for, would start a thread for every processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from agentos_native.supervisor.foundation import Foundation

    with Foundation(options) as foundation:
        import asyncio

        from agentos_native.supervisor.app import App

        gc.freeze()  # modules live for ever; the collector need not look at them again

        async def work() -> int:
            return await App(options, fd, foundation).run()

        return asyncio.run(work())


def main() -> int:
    """The process; its exit status says to the launcher whether to start another one."""
    prctl.set_name("agentos-superv")
    prctl.set_pdeathsig(signal.SIGKILL)  # without its launcher it can do nothing, and the next start wants the state
    if os.getppid() == 1:
        return EXIT_FAILED
    logging.basicConfig(level=logging.INFO, format="agentos-native: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it would report every stream
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        options = parse(sys.argv[1:])
        if os.geteuid() != 0:
            raise AgentosError("permission", "the supervisor makes namespaces and cgroups", "", "Run it as root.")
        fd = launcher_fd()
        if options.embedded:
            logging.getLogger("agentos_native").setLevel(logging.WARNING)
        return serve(options, fd)
    except AgentosError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # before the event loop takes signals
        return 128 + signal.SIGINT
    except Exception:
        logging.exception("the supervisor failed")
        return EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
