"""The supervisor's settings: one table that feeds the configuration file, the options of ``supervise``, and the help.

Precedence: option, environment (where a setting has a variable), configuration file, default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec import model, names, quantities
from agentos_native.spec.tree import Place, clip, fail

DEFAULT_STATE_DIR: Final = "/var/lib/agentos"
DEFAULT_SOCKET: Final = "/run/agentos/agentos.sock"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one supervisor runs. Times in seconds, sizes in bytes."""

    node: str = "main"
    state_dir: str = DEFAULT_STATE_DIR
    socket: str = DEFAULT_SOCKET
    cgroup_root: str = "/"
    tick_period: float = 1.0
    log_max_bytes: int = 10 * 2**20
    log_files: int = 3
    init: str | None = None
    on_exit: Literal["stop", "keep"] = "stop"
    network: Literal["required", "off"] = "required"
    policy: model.Policy = "maxmin"
    control: tuple[model.Resource, ...] = model.RESOURCES
    network_rate: int | None = None
    queue_limit: int = 100
    node_queue_limit: int = 2000
    record: int = 16 * 2**20


@dataclass(frozen=True)
class Setting:
    """One row: the attribute of `Settings`, how its text is read and shown, and what it means."""

    attribute: str
    metavar: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]
    help: str
    variable: str = ""

    @property
    def key(self) -> str:
        """As written in the file (camelCase, as in specs)."""
        head, *rest = self.attribute.split("_")
        return head + "".join(word.capitalize() for word in rest)

    @property
    def option(self) -> str:
        """As written on the command line."""
        return "--" + self.attribute.replace("_", "-")

    @property
    def default(self) -> Any:
        return getattr(Settings(), self.attribute)


def _period(text: str) -> float:
    seconds = quantities.parse_duration(text)
    if not 0.1 <= seconds <= 10:
        raise AgentosError("out-of-range", f"{text!r} is out of range", hint="a tick takes from 0.1s to 10s")
    return seconds


def _bytes(text: str) -> int:
    size = quantities.parse_memory(text)
    if size < 4096:
        raise AgentosError("out-of-range", f"{text!r} is out of range", hint="at least 4Ki")
    return size


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1000 and len(text) < 9):
        raise AgentosError("out-of-range", f"{clip(text)} is out of range", hint="a whole number from 1 to 1000")
    return int(text)


def _places(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= 100_000):
        raise AgentosError("out-of-range", f"{clip(text)} is out of range", hint="a whole number from 1 to 100000")
    return int(text)


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise AgentosError("invalid-value", f"{clip(text)} is not one of {', '.join(choices)}")
        return text

    return read


def _resources(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    wanted = [word.strip() for word in text.split(",")]
    for word in wanted:
        if word not in model.RESOURCES:
            known = ", ".join(model.RESOURCES)
            raise AgentosError("invalid-value", f"{clip(word)} is not one of {known}", hint="or none for none of them")
    return tuple(name for name in model.RESOURCES if name in wanted)


def _rate(text: str) -> int:
    rate = quantities.parse_rate(text)
    if rate < 1_000_000:
        raise AgentosError("out-of-range", f"{text!r} is out of range", hint="at least 1M bits per second")
    return rate


def _record(text: str) -> int:
    size = 0 if text == "off" else quantities.parse_memory(text)
    if size and size < 2**20:
        raise AgentosError("out-of-range", f"{text!r} is out of range", hint="at least 1Mi, or off")
    return size


TABLE: Final[tuple[Setting, ...]] = (
    Setting("node", "NAME", names.check_node, str, "name that everything of this supervisor carries on the host"),
    Setting(
        *("state_dir", "DIR", names.check_path, str, "images, agents and the registry"),
        variable="AGENTOS_STATE_DIR",
    ),
    Setting("socket", "PATH", names.check_path, str, "unix socket of the API", variable="AGENTOS_SOCKET"),
    Setting("cgroup_root", "PATH", names.check_path, str, "group below which agents run, within the cgroup v2 mount"),
    Setting(
        "tick_period", "TIME", _period, quantities.format_duration, "how often shares are computed anew (0.1s–10s)"
    ),
    Setting("log_max_bytes", "SIZE", _bytes, quantities.format_memory, "size at which an agent's log is rotated"),
    Setting("log_files", "N", _count, str, "how many files of log an agent keeps"),
    Setting("init", "PATH", names.check_path, str, "static init that is pid 1 of an agent; default: tini or catatonit"),
    Setting(
        "on_exit", "stop|keep", _choice("stop", "keep"), str, "what becomes of agents when the supervisor is stopped"
    ),
    Setting("network", "required|off", _choice("required", "off"), str, "off: only agents without network can run"),
    Setting("policy", "NAME", _choice(*model.POLICIES), str, "how tenants share: maxmin, drf, utility or priority"),
    Setting(
        *("control", "LIST", _resources, lambda names_: ",".join(names_) or "none"),
        "resources that are moved between agents: cpu,memory,io,network (all), or none",
    ),
    Setting(
        *("network_rate", "RATE", _rate, quantities.format_rate),
        "bits per second of the machine's uplink, to be shared; without it only limits are kept",
    ),
    Setting("queue_limit", "N", _count, str, "how many starts of a tenant may wait"),
    Setting(
        *("node_queue_limit", "N", _places, str),
        "how many starts may wait altogether; a tenant never has more waiting than there are places left",
    ),
    Setting(
        *("record", "SIZE|off", _record, lambda size: quantities.format_memory(size) if size else "off"),
        "size of the ring of recorded ticks in the state directory",
    ),
)
"""Every setting, in the order of the help."""


def load(
    overrides: Mapping[str, str] | None = None,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings that hold. `overrides` are texts by attribute. Raises `AgentosError` that names the source."""
    written = _from_file(config) if config else {}
    environ = os.environ if environ is None else environ
    values = {}
    for row in TABLE:
        if overrides and overrides.get(row.attribute) is not None:
            text, place = overrides[row.attribute], Place(row.option)
        elif row.variable and environ.get(row.variable):
            text, place = environ[row.variable], Place(row.variable)
        elif row.attribute in written:
            text, place = written[row.attribute]
        else:
            continue
        try:
            values[row.attribute] = row.read(text)
        except AgentosError as error:
            raise fail(error.code, error.what, place, error.hint)
    return Settings(**values)


def _from_file(path: str) -> dict[str, tuple[str, Place]]:
    from agentos_native.spec import yamltree
    from agentos_native.spec.tree import expect, only

    try:
        with open(path, encoding="utf-8") as file:
            documents = yamltree.documents(file.read(yamltree.MAX_TEXT + 1), path)
    except OSError as error:
        raise AgentosError("cannot-read", error.strerror or str(error), path)
    except UnicodeDecodeError:
        raise AgentosError("invalid-yaml", "not a UTF-8 text", path)
    if len(documents) > 1:
        raise fail("invalid-yaml", "more than one document", documents[1].place)
    keys = {row.key: row.attribute for row in TABLE}
    found = {}
    for document in documents:
        only(document, keys)
        for key, node in document.entries.items():
            found[keys[key]] = (expect(node, "str", "int", "float").text, node.place)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each row, and ``--config``; read back by `from_namespace`."""
    parser.add_argument("--config", metavar="FILE", help="configuration file (YAML)")
    for row in TABLE:
        parser.add_argument(row.option, dest=row.attribute, metavar=row.metavar, help=row.help)


def from_namespace(namespace: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Settings:
    """What `add_arguments` parsed, completed by environment, file and defaults."""
    overrides = {row.attribute: getattr(namespace, row.attribute) for row in TABLE}
    return load(overrides, namespace.config, environ)


def to_argv(settings: Settings) -> list[str]:
    """The options that give exactly these settings again, whatever environment and file say."""
    argv = []
    for row in TABLE:
        value = getattr(settings, row.attribute)
        if value is not None:
            argv.append(f"{row.option}={row.show(value)}")
    return argv
