"""The options of ``run`` → an `AgentSpec`; each value has its option as its place, so that errors name the option."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from agentos_native.errors import AgentosError

if TYPE_CHECKING:
    from agentos_native.spec.model import AgentSpec
    from agentos_native.spec.tree import Node

Value = tuple[str, Any, str]
"""A path in the spec, what is put there, and the option that said it."""
_Text = tuple[str, str, str]
TEXTS: Final[tuple[_Text, ...]] = (
    # option, path in the spec, help
    ("--name", "name", "Name of the agent (made up by default)."),
    ("--tenant", "tenant", "Owner (default)."),
    ("--type", "type", "task, dialogue or learning (what the image's label io.agentos.type says, or task)."),
    ("--priority", "priority", "system, high, normal, low or idle: order within the tenant."),
    ("--weight", "weight", "Share against others of the same tenant and priority, 1 to 10000 (100)."),
    ("--cpu-request", "resources.requests.cpu", "CPU that is reserved: 500m, 2."),
    ("--cpu-limit", "resources.limits.cpu", "CPU that is never exceeded."),
    ("--memory-request", "resources.requests.memory", "Memory that is reserved: 64Mi."),
    ("--memory-limit", "resources.limits.memory", "Memory that is never exceeded."),
    ("--pids-limit", "resources.limits.pids", "How many processes and threads at once."),
    ("--io-weight", "resources.ioWeight", "Share of the disk, 1 to 10000."),
    ("--network", "network", "none, isolated (default) or egress."),
    ("--egress-request", "resources.requests.network.egress", "Part of the uplink that is reserved for it: 10M bit/s."),
    ("--ingress-request", "resources.requests.network.ingress", "The same for what it receives."),
    ("--egress-limit", "resources.limits.network.egress", "Bits per second that it never exceeds sending: 10M, 1G."),
    ("--ingress-limit", "resources.limits.network.ingress", "Bits per second that it never exceeds receiving."),
    ("--user", "user", "User inside: NAME, UID, NAME:GROUP or UID:GID."),
    ("--workdir", "workdir", "Working directory inside."),
    ("--hostname", "hostname", "Host name inside (the agent's name by default)."),
    ("--timeout", "timeout", "Stop it after this long (exit status 124)."),
    ("--wait-timeout", "waitTimeout", "Let its start wait in the queue no longer than this (exit status 124)."),
    ("--stop-signal", "stop.signal", "Signal that asks it to end (the image's, or SIGTERM)."),
    ("--stop-grace", "stop.grace", "Time until a stop kills the whole tree (10s)."),
)
_SHORT: Final = {"--memory-limit": "-m", "--user": "-u", "--workdir": "-w"}
WHOLE: Final = frozenset(("weight", "resources.limits.pids", "resources.ioWeight"))


def spec_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds every option of a spec; the command gets them as keyword arguments named by `attribute`."""
    for option, path, text in reversed(TEXTS):
        names = (_SHORT[option], option) if option in _SHORT else (option,)
        function = click.option(*names, attribute(path), metavar="VALUE", help=text)(function)
    several = _option(multiple=True)
    for options, name, metavar, text in reversed(
        (
            ("-e --env", "env", "NAME=VALUE", "Environment variable; NAME alone takes it from here. Repeatable."),
            ("--env-file", "env_file", "FILE", "File of NAME=VALUE lines. Repeatable."),
            ("-v --volume", "volume", "SRC:DST[:ro]", "Bind a directory or file of the host. Repeatable."),
            ("-l --label", "label", "NAME=VALUE", "Label. Repeatable."),
            ("--cap-add", "cap_add", "CAP", "Capability that it keeps over its own files and processes. Repeatable."),
            ("--rlimit", "rlimit", "NAME=N", "Resource limit such as nofile=1024. Repeatable."),
        )
    ):
        function = several(*options.split(), name, metavar=metavar, help=text)(function)
    one = _option()
    function = one("--restart", metavar="POLICY[:MAX]", help="never (default), on-failure or always.")(function)
    function = one(
        "--entrypoint",
        metavar="CMD",
        help='Run this in place of the image\'s entry point and arguments; "" takes them away.',
    )(function)
    function = one("--allow-unenforced", metavar="LIST", help="Controllers to do without: cpu,memory,pids,io.")(
        function
    )
    made: Callable[..., Any] = one("--read-only", is_flag=True, help="The root filesystem cannot be written.")(function)
    return made


def _option(**fixed: Any) -> Callable[..., Callable[..., Any]]:
    """`click.option` with some arguments given."""
    return lambda *names, **rest: click.option(*names, **fixed, **rest)


def attribute(path: str) -> str:
    return "spec_" + re.sub(r"(?<!^)([A-Z])", r"_\1", path.replace(".", "_")).lower()


def environment(pairs: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """The variables of ``--env-file`` and then of ``--env``, which wins."""
    found: dict[str, str] = {}
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AgentosError("cannot-read", getattr(error, "strerror", None) or "not a UTF-8 text", path)
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                _add(found, line.strip(), f"{path}:{number}")
    for pair in pairs:
        _add(found, pair, "--env")
    return found


def _add(found: dict[str, str], pair: str, where: str) -> None:
    name, equals, value = pair.partition("=")
    if equals:
        found[name] = value
    elif name in os.environ:
        found[name] = os.environ[name]
    else:
        raise AgentosError("invalid-value", f"the variable {name!r} is not set here", where, "write NAME=VALUE")


def build(image: str, command: tuple[str, ...], given: dict[str, Any], flags: dict[str, bool]) -> AgentSpec:
    """The spec that a command line describes.

    Args:
        image, command: the arguments; `command` replaces the image's own arguments, not its entry point.
        given: what `spec_options` collected.
        flags: ``stdin``, ``tty``, ``autoRemove``.
    """
    from agentos_native.spec.documents import agent_from_nodes

    values: list[Value] = [("image", image, "IMAGE"), *texts(given)]
    if not any(path == "name" for path, _, _ in values):
        values.append(("name", made_up_name(image), "IMAGE"))
    values += _compound(given)
    if given["entrypoint"] == "":
        values.append(("command", _whole_command(command), "--entrypoint"))
    elif command:
        values.append(("args", list(command), "COMMAND"))
    values += [(flag, True, "") for flag, wanted in flags.items() if wanted]
    return agent_from_nodes(nodes_of(values))


def _whole_command(command: tuple[str, ...]) -> list[str]:
    """``--entrypoint ""`` takes the image's own away, as Docker has it: the arguments say all."""
    if not command:
        raise AgentosError("invalid-value", "nothing is left to run", "--entrypoint", "Give a command after the image.")
    return list(command)


def texts(given: dict[str, Any]) -> Iterator[Value]:
    """The options of `TEXTS` that were given."""
    for option, path, _ in TEXTS:
        value = given[attribute(path)]
        if value is not None:
            yield path, whole(value, option) if path in WHOLE else value, option


def nodes_of(values: Iterable[Value]) -> dict[str, Node]:
    """The fields of a spec as nodes, each with its option for its place, so that errors name the option."""
    from agentos_native.spec.tree import Node, Place, from_object

    entries: dict[str, Any] = {}
    for path, value, where in values:
        *parents, last = path.split(".")
        at = entries
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = from_object(value, Place(where))

    def close(value: Any) -> Node:
        if isinstance(value, Node):
            return value
        return Node("map", Place(), entries={key: close(inner) for key, inner in value.items()})

    return {key: close(value) for key, value in entries.items()}


def _compound(given: dict[str, Any]) -> Iterator[Value]:
    """Path, value and place of the options whose text has parts."""
    if given["env"] or given["env_file"]:
        yield "env", environment(given["env"], given["env_file"]), "--env"
    if given["volume"]:
        yield "volumes", [_volume(text) for text in given["volume"]], "--volume"
    if given["label"]:
        yield "labels", dict(pair(text, "--label") for text in given["label"]), "--label"
    if given["rlimit"]:
        pairs = (pair(text, "--rlimit") for text in given["rlimit"])
        yield "rlimits", {name: whole(value, "--rlimit") for name, value in pairs}, "--rlimit"
    if given["cap_add"]:
        yield "capabilities", list(given["cap_add"]), "--cap-add"
    if given["restart"]:
        policy, colon, most = given["restart"].partition(":")
        yield "restart.policy", policy, "--restart"
        if colon:
            yield "restart.max", whole(most, "--restart"), "--restart"
    if given["entrypoint"]:
        yield "command", [given["entrypoint"]], "--entrypoint"
    if given["allow_unenforced"]:
        names = [name.strip() for name in given["allow_unenforced"].split(",")]
        yield "allowUnenforced", names, "--allow-unenforced"
    if given["read_only"]:
        yield "readOnly", True, "--read-only"


def whole(text: str, option: str) -> int:
    if text.isascii() and text.lstrip("-").isdigit() and len(text) < 19:
        return int(text)
    raise AgentosError("invalid-value", f"expected a whole number, got {text!r}", option)


def pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise AgentosError("invalid-value", f"expected NAME=VALUE, got {text!r}", option)
    return name, value


def _volume(text: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise AgentosError("invalid-value", f"expected SOURCE:TARGET[:ro], got {text!r}", "--volume")
    source = os.path.abspath(parts[0]) if parts[0].split("/")[0] in (".", "..") else parts[0]
    return {"source": source, "target": parts[1], "readOnly": parts[2:] == ["ro"]}


def made_up_name(image: str) -> str:
    """A name out of the image's: ``python-3f9a1c``."""
    base = re.sub(r"[^a-z0-9]+", "-", image.rpartition("/")[2].partition(":")[0].lower()).strip("-")[:50].strip("-")
    return f"{base or 'agent'}-{secrets.token_hex(3)}"
