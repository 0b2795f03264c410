"""What people type who come from docker, podman or kubectl, and what does it here: hints for unknown words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_PUSH: Final = "nothing is sent to registries; export it, and skopeo copy oci:DIR docker://HOST/NAME does it"
_NO_SECRETS: Final = "a build is given nothing secret"
_JSON: Final = "-o json, and a program such as jq"
_ALL: Final = "all are shown, also those without a name"
_GC_ASKS: Final = "it does not ask; --dry-run says what would go"
_PORTS: Final = "ports are not published: an agent's are reached at its address (inspect)"
_DOCUMENTS: Final = "apply -f FILE makes what documents describe"
_CLOSED: Final = "nothing of the host's can be given to an agent but directories and files (--volume)"

_IMAGE_COMMANDS: Final = {
    "list": "image ls",
    "images": "image ls",
    "remove": "image rm",
    "delete": "image rm",
    "rmi": "image rm",
    "prune": "image gc",
    "load": "image import NAME FILE.tar",
    "save": "image export NAME FILE.tar --format docker",
    "push": _PUSH,
    "search": "registries are not searched; image pull HOST/NAME fetches",
    "commit": "images are made by image build and image import",
}
_COMMANDS: Final = {
    **_IMAGE_COMMANDS,
    **{
        word: f"image {word}"
        for word in ("build", "pull", "import", "export", "history", "tag", "diff", "verify", "gc")
    },
    "list": "ps, or image ls",
    "ls": "ps, or image ls",
    "get": "ps, tenant ls or image ls; -o json",
    "remove": "rm, or image rm",
    "describe": "inspect; alloc explain says why an agent has what it has",
    "create": "run -d",
    "update": "set",
    "edit": "set",
    "scale": f"replicas in a document; {_DOCUMENTS}",
    "compose": _DOCUMENTS,
    "rename": "names stay; run --name gives one",
    "port": _PORTS,
    "network": "run --network none, isolated or egress",
    "volume": "run --volume binds a directory or file of the host",
    "container": "without that word: ps, run, rm, …",
    "system": "check for what the host can do, image gc for what can go",
    "login": "image pull has --creds and --authfile",
    "cp": "run --volume, or exec -i NAME tar -x",
    "stats": "top",
    "unpause": "resume",
    "info": "check",
}
_OPTIONS: Final = {
    ("build", "--pull"): "FROM takes images of the store; image pull gets them there",
    ("build", "--platform"): "a build is for this machine",
    ("build", "--secret"): _NO_SECRETS,
    ("build", "--ssh"): _NO_SECRETS,
    ("build", "--push"): _PUSH,
    ("build", "--squash"): "layers stay as the steps made them",
    ("build", "--iidfile"): "-q prints the digest alone",
    ("ls", "-a"): _ALL,
    ("ls", "--all"): _ALL,
    ("ls", "--format"): _JSON,
    ("ls", "--filter"): _JSON,
    ("inspect", "-f"): _JSON,
    ("inspect", "--format"): _JSON,
    ("history", "--no-trunc"): "-o json has each step whole",
    ("export", "-o"): "where it goes is the second word: image export NAME FILE.tar",
    ("gc", "-f"): _GC_ASKS,
    ("gc", "--force"): _GC_ASKS,
    ("gc", "--filter"): "--older-than 7d is until=, for the build cache",
    ("run", "-p"): _PORTS,
    ("run", "--publish"): _PORTS,
    ("run", "--privileged"): _CLOSED,
    ("run", "--device"): _CLOSED,
    ("run", "--gpus"): _CLOSED,
    ("run", "--pid"): _CLOSED,
    ("run", "--cap-drop"): "it has no capability but those of --cap-add",
    ("run", "--init"): "every agent has one",
    ("run", "--pull"): "image pull, then run",
    ("run", "--platform"): "images are for this machine",
    ("run", "--mount"): "--volume SRC:DST[:ro]",
    ("run", "--ulimit"): "--rlimit",
    ("ps", "--format"): _JSON,
    ("ps", "--filter"): "--tenant, or -o json and a program such as jq",
    ("ps", "-n"): "--tenant is what has names of its own here",
    **{
        (command, option): hint
        for command in ("run", "set")
        for option, hint in (
            ("--cpus", "--cpu-limit is never exceeded, --cpu-request is reserved"),
            ("--memory", "--memory-limit"),
            ("--memory-reservation", "--memory-request"),
            ("--cpu-shares", "--weight"),
            ("--net", "--network"),
        )
    },
}


def command_hint(word: str, known: Iterable[str], *, image: bool = False) -> str:
    """For a command that is not `known`, at the top or (`image`) below ``image``."""
    from agentos_native.spec.tree import nearest

    return (_IMAGE_COMMANDS if image else _COMMANDS).get(word) or nearest(word, known)


def option_hint(command: str, option: str) -> str:
    """For an option that `command` does not have; "" when nothing can be said about it."""
    return _OPTIONS.get((command, option), "")
