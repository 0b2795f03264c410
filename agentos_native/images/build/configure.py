"""What each instruction other than FROM, COPY and ADD does to a stage's configuration, and RUN."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable
from typing import Final

from agentos_native.images.build.dockerfile import exec_form, parse
from agentos_native.images.build.model import Instruction, Run
from agentos_native.images.build.scope import InstructionError, State, unsupported
from agentos_native.images.confine import ID_RANGE
from agentos_native.images.model import Healthcheck

DEFAULT_SHELL: Final = ("/bin/sh", "-c")
_ENV_MAX: Final = 1 << 20
_PATH_MAX: Final = 4095
_PORT: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([A-Za-z]+))?")
_REAL_TIME: Final = re.compile(r"SIGRTM(?:IN(?:\+\d{1,2})?|AX(?:-\d{1,2})?)")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def absolute(path: str, workdir: str) -> str:
    """`path` from `workdir`, without "." and "..", which end at the root."""
    return "/" + posixpath.normpath(posixpath.join("/", workdir, path)).lstrip("/")


# -- variables and labels


def _pairs(instruction: Instruction, state: State) -> list[tuple[str, str]]:
    """``name=value …``, or the old form ``name value with blanks``; all expanded with what was before the line."""
    expander = state.expander(instruction)
    words = instruction.words
    if "=" not in words[0]:
        value = instruction.text.strip()[len(words[0]) :].strip()
        if not value:
            raise InstructionError(f"{words[0]!r} has no value", "name=value")
        return [(expander.word(words[0]), expander.word(value))]
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InstructionError(f"there is no = in {word!r}", 'put a value with blanks in quotes: name="a b"')
        found.append((expander.word(name), expander.word(value)))
        if not found[-1][0]:
            raise InstructionError(f"{word!r} has no name before the =")
    return found


def _env(instruction: Instruction, state: State) -> None:
    env = dict(state.config.env) | dict(_pairs(instruction, state))
    if sum(len(name) + len(value) for name, value in env.items()) > _ENV_MAX:
        raise InstructionError(f"the environment becomes larger than {_ENV_MAX} characters")
    state.spend(len(env))
    state.set(env=tuple(env.items()))


def _label(instruction: Instruction, state: State) -> None:
    labels = state.config.labels | dict(_pairs(instruction, state))
    if sum(len(name) + len(value) for name, value in labels.items()) > _ENV_MAX:
        raise InstructionError(f"the labels become larger than {_ENV_MAX} characters")
    state.spend(len(labels))
    state.set(labels=labels)


def _arg(instruction: Instruction, state: State) -> None:
    state.scope.declare(instruction, dict(state.config.env))


def _maintainer(instruction: Instruction, state: State) -> None:
    state.author = state.expander(instruction).word(instruction.text)


# -- who, where, how


def _workdir(instruction: Instruction, state: State) -> None:
    path = state.expander(instruction).word(instruction.text)
    if not path:
        raise InstructionError("the directory is empty once its variables are expanded")
    path = absolute(path, state.config.workdir)
    if len(path) > _PATH_MAX:
        raise InstructionError(f"the directory's path becomes longer than {_PATH_MAX} characters")
    state.set(workdir=path)


def _user(instruction: Instruction, state: State) -> None:
    user = state.expander(instruction).word(instruction.text)
    if not user.strip():
        state.note("USER is empty once its variables are expanded, which means root")
    for part in user.strip().split(":"):
        if part.isascii() and part.isdigit() and (len(part) > 10 or int(part) >= ID_RANGE):
            raise InstructionError(f"{part[:20]} is no id of an agent", f"ids are 0 to {ID_RANGE - 1}")
    state.set(user=user.strip())


def _shell(instruction: Instruction, state: State) -> None:
    if not instruction.exec_form or not instruction.words:
        raise InstructionError("it takes a JSON list", 'SHELL ["/bin/bash", "-c"]')
    state.set(shell=instruction.words)


def command(instruction: Instruction, state: State) -> tuple[str, ...]:
    """The program of a CMD, ENTRYPOINT or RUN: its exec form, or the text for the stage's shell."""
    if instruction.exec_form:
        return instruction.words
    return (*(state.config.shell or DEFAULT_SHELL), instruction.text)


def _cmd(instruction: Instruction, state: State) -> None:
    state.cmd_is_own = True
    state.set(cmd=command(instruction, state))


def _entrypoint(instruction: Instruction, state: State) -> None:
    state.set(entrypoint=command(instruction, state))
    if not state.cmd_is_own:
        state.set(cmd=())  # the base's CMD was meant for the base's entrypoint


def _stop_signal(instruction: Instruction, state: State) -> None:
    word = state.expander(instruction).word(instruction.text).strip()
    name = word.upper() if word.upper().startswith("SIG") else f"SIG{word.upper()}"
    if word.isascii() and word.isdigit():
        known = 1 <= int(word) <= signal.NSIG - 1
    else:
        known = name in signal.Signals.__members__ or bool(_REAL_TIME.fullmatch(name))
    if not known:
        raise InstructionError(f"{word!r} is no signal", "SIGTERM, or a number")
    state.set(stop_signal=word if word.isdigit() else name)


def _on_build(instruction: Instruction, state: State) -> None:
    text = instruction.text
    for each in instruction.heredocs:
        text += f"\n{each.content}{each.name}"
    (trigger,) = parse(text.encode(), state.name)[:1]
    if trigger.name in ("ONBUILD", "FROM", "MAINTAINER"):
        raise InstructionError(f"{trigger.name} cannot be done on a later build")
    state.spend(len(state.config.on_build))
    state.set(on_build=(*state.config.on_build, text))


# -- what others are told


def _expose(instruction: Instruction, state: State) -> None:
    ports = list(state.config.exposed)
    for word in state.expander(instruction).words(instruction.text):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        protocol = (match[3] or "tcp").lower() if match else ""
        if not 1 <= first <= last <= 65535 or protocol not in ("tcp", "udp", "sctp"):
            raise InstructionError(f"{word!r} is no port", "80, 53/udp or 8000-8010/tcp")
        state.spend(last - first + 1)
        ports += [f"{port}/{protocol}" for port in range(first, last + 1)]
    state.spend(len(ports))
    state.set(exposed=tuple(dict.fromkeys(ports)))


def _volume(instruction: Instruction, state: State) -> None:
    expander = state.expander(instruction)
    volumes = [expander.word(word) for word in instruction.words]
    if not all(volume.strip() for volume in volumes):
        raise InstructionError("a volume's path is empty")
    state.spend(len(state.config.volumes) + len(volumes))
    state.set(volumes=tuple(dict.fromkeys([*state.config.volumes, *volumes])))


def _healthcheck(instruction: Instruction, state: State) -> None:
    kind, _, rest = instruction.text.strip().partition(" ")
    rest = rest.strip()
    if kind.upper() == "NONE":
        if rest or instruction.flags:
            raise InstructionError("NONE takes neither options nor a command")
        state.set(healthcheck=Healthcheck(test=("NONE",)))
        return
    if kind.upper() != "CMD" or not rest:
        raise InstructionError(f"it takes CMD and a command, or NONE, not {kind[:40]!r}")
    try:
        words = exec_form(rest)
    except ValueError as error:
        raise InstructionError(str(error)) from None
    options = dict(instruction.flags)
    retries = options.get("retries", "0")
    if not (retries.isascii() and retries.isdigit()):
        raise InstructionError(f"--retries={retries} is no number")
    if "start-interval" in options:
        state.note("HEALTHCHECK --start-interval is not kept")
    state.set(
        healthcheck=Healthcheck(
            test=("CMD-SHELL", rest) if words is None else ("CMD", *words),
            interval=_nanoseconds(options, "interval"),
            timeout=_nanoseconds(options, "timeout"),
            start_period=_nanoseconds(options, "start-period"),
            retries=int(retries[:9]),
        )
    )


def _nanoseconds(options: dict[str, str], name: str) -> int:
    """A duration such as ``1m30s``; 0 when it is not given."""
    text = options.get(name, "0s")
    parts = _DURATION.findall(text[:64])
    if "".join(number + unit for number, unit in parts) != text:
        raise InstructionError(f"--{name}={text} is no duration", "30s, 1m30s, 500ms")
    total = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < total < _UNITS["ms"] or total >= 1 << 63:
        raise InstructionError(f"--{name}={text} is out of range", "1ms or more")
    return total


# -- RUN


def run_of(instruction: Instruction, state: State) -> Run:
    """The program that a RUN starts, without its mounts (`mounts.mounts_of`).

    Raises:
        InstructionError: an option that does not exist here, or no program.
    """
    network = _run_options(instruction)
    argv = command(instruction, state)
    if instruction.heredocs:
        argv = (*argv[:-1], _script(instruction))
    if not argv or not argv[0]:
        raise InstructionError("there is no program to run")
    env = state.scope.for_run() | dict(state.config.env)
    state.spend(len(env))
    return Run(
        argv=argv,
        env=tuple(env.items()),
        user=state.config.user,
        workdir=state.config.workdir or "/",
        network=network,
    )


def _run_options(instruction: Instruction) -> str:
    """The network that it asks for ("" for the build's)."""
    network = ""
    for name, value in instruction.flags:
        if name == "security" and value != "sandbox":
            raise unsupported(f"--security={value} is not supported", "every RUN is in a sandbox")
        if name == "network":
            if value not in ("none", "default"):
                hint = "none, or default, which is what `image build --network` says"
                raise unsupported(f"--network={value} is not supported", hint)
            network = "none" if value == "none" else ""
    return network


def _script(instruction: Instruction) -> str:
    """What the shell gets of a RUN with heredocs: one that stands alone is the script, else the shell reads them."""
    first = instruction.heredocs[0]
    if len(instruction.words) > 1:
        return instruction.text + "".join(f"\n{each.content}{each.name}" for each in instruction.heredocs)
    if not first.content.startswith("#!"):
        return first.content
    interpreter, _, script = first.content[2:].partition("\n")
    end = first.name
    while f"\n{end}\n" in f"\n{script}":
        end += "_"
    # the interpreter reads it from a pipe, so that no file is left in the layer
    return f"exec {interpreter.strip()} /dev/fd/3 3<<'{end}'\n{script}{end}\n"


APPLY: Final[dict[str, Callable[[Instruction, State], None]]] = {
    "ARG": _arg,
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
