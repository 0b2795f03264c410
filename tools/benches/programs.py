"""The contenders that are, or are started by, C programs: these take lines "COUNT DEPTH" and answer with times."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from tools.benches import memory
from tools.benches.place import INITS, BenchError, Place, find_program, link_names
from tools.benches.rounds import Times

FLOOR_STAGES: Final = ("user namespace and rootfs", "cgroup", "network", "clone to exec")
NFT_TABLE: Final = "floor"
NFT_RULES: Final = f"""
table inet {NFT_TABLE} {{
    set pin4 {{ type ifname . ipv4_addr; }}
    set pin6 {{ type ifname . ipv6_addr; }}
}}
"""


class LineProgram:
    """A contender behind a pipe.

    Args:
        name: as in the rows.
        command: what to run.
        links: prefix of the network devices that its starts make; waited for in `settle`.
        stage_names: what the figures after the first two of each start are.
    """

    def __init__(self, name: str, command: Sequence[str], links: str = "", stage_names: Sequence[str] = ()) -> None:
        self.name = name
        self.stage_names = stage_names
        self._links = links
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> LineProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, count: int, depth: int) -> Times:
        """See `rounds.Contender.run`. Raises BenchError when the program gave up; it has said why on standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count} {depth}\n")
        self._process.stdin.flush()
        return parse_times(self.name, self._process.stdout.readline())

    def processor_seconds(self) -> float:
        """See `rounds.Contender`."""
        return memory.processor_seconds(memory.tree(self._process.pid), children=True)

    def settle(self) -> bool:
        """Whether the kernel has removed the devices of the last batch."""
        return not (self._links and link_names(self._links))


def parse_times(name: str, line: str) -> Times:
    """One answer: the batch's wall time, then "executed,ended[,…]" for each start, in microseconds."""
    words = line.split()
    if len(words) < 2:
        raise BenchError(f"{name} could not make its starts (see above)")
    starts = [tuple(float(figure) for figure in word.split(",")) for word in words[1:]]
    executed, ended = tuple(start[0] for start in starts), tuple(start[1] for start in starts)
    return Times(executed, ended, float(words[0]), tuple(start[2:] for start in starts))


def floor(here: Place, seccomp_filter: bytes) -> LineProgram:
    """The C program of floor.c, with the product's own seccomp filter."""
    subprocess.run(["nft", "-f", "-"], input=NFT_RULES, text=True, check=True)
    state, group, filter_file = here.directory / "floor", here.cgroup / "floor", here.directory / "filter.bpf"
    state.mkdir(mode=0o711)
    group.mkdir()
    filter_file.write_bytes(seccomp_filter)
    init = find_program(*INITS)
    command = [here.programs / "floor", state, here.image, group, NFT_TABLE, init, filter_file]
    return LineProgram("C", [str(word) for word in command], "fl", FLOOR_STAGES)


def bubblewrap(here: Place) -> LineProgram:
    """``bwrap --unshare-all`` on the same image."""
    bwrap = find_program("bwrap")
    command = [bwrap, "--unshare-all", "--bind", str(here.image), "/", "--proc", "/proc", "--dev", "/dev", "/bin/stamp"]
    return LineProgram("bwrap", [str(here.programs / "spawn"), *command])


def oci(here: Place, runtime: str) -> LineProgram:
    """``runc run`` or ``crun run`` with the configuration that ``spec`` writes, on the same image."""
    program = find_program(runtime)
    bundle = here.directory / runtime
    bundle.mkdir()
    subprocess.run([program, "spec"], cwd=bundle, check=True)
    _adapt(bundle / "config.json", here.image)
    command = [program, "--root", str(bundle / "state"), "run", "--bundle", str(bundle), "{}"]
    return LineProgram(runtime, [str(here.programs / "spawn"), *command])


def _adapt(path: Path, image: Path) -> None:
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=["/bin/stamp"])
    config["root"] = {"path": str(image), "readonly": True}
    path.write_text(json.dumps(config))
