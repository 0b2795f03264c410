"""``python -m agentos_native.launcher [SUPERVISOR-OPTION...] [-- COMMAND...]``: the top process.

Without a command, or when what follows ``--`` begins with an option, the supervisor is `agentos_native.supervisor`
with those options.
"""

from __future__ import annotations

import resource
import sys

import prctl

from agentos_native.errors import EXIT_FAILED, AgentosError
from agentos_native.kernel.sched import set_nice_of_this_thread
from agentos_native.launcher.loop import Launcher


def supervisor_command(arguments: list[str]) -> list[str]:
    """The supervisor's command line out of this program's own arguments."""
    options, command = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        options, command = arguments[:place], arguments[place + 1 :]
    if command and not command[0].startswith("-"):
        return command + options
    return [sys.executable, "-m", "agentos_native.supervisor", *options, *command]


def prepare_process() -> None:
    """Make this process what the theory of operation in ``loop`` and ``_child.c`` relies on.

    Raises:
        AgentosError: ``suid-dumpable``: this host would let agents trace the launcher's memory during an exec.
    """
    prctl.set_name("agentos-launch")
    prctl.set_child_subreaper(1)
    prctl.set_dumpable(0)
    with open("/proc/sys/fs/suid_dumpable") as file:
        if file.read().strip() == "1":
            raise AgentosError(
                "suid-dumpable",
                "fs.suid_dumpable is 1, which makes processes traceable after a change of user ids",
                "/proc/sys/fs/suid_dumpable",
                "sysctl fs.suid_dumpable=0 (the kernel's default; 2 is fine as well)",
            )
    set_nice_of_this_thread(-10)  # it does little, and a busy machine must not delay it; children begin at 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one pidfd for each agent


def main() -> int:
    """The process; returns its exit status."""
    try:
        prepare_process()
        return Launcher(supervisor_command(sys.argv[1:])).run()
    except AgentosError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
