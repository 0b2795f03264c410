"""Who asks a registry: ``--creds``, or a file as docker and podman keep it. Programs that such a file names are not
run: what they would be given and what they are is not this command's to decide."""

from __future__ import annotations

import base64
import binascii
import os
import sys
from typing import Final

import msgspec

from agentos_native.errors import AgentosError

_FILE_MAX: Final = 1 << 20
_SECRET_MAX: Final = 64 << 10


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct):
    auths: dict[str, _Entry] = {}
    credHelpers: dict[str, str] = {}
    credsStore: str = ""


def chosen(reference: str, creds: str | None, password_stdin: bool, authfile: str | None) -> tuple[str, str]:
    """User and password for the registry of `reference`; two empty texts for nobody.

    Raises:
        AgentosError: ``invalid-creds``, ``invalid-authfile``, ``credential-helper``.
    """
    if creds is not None:
        return _given(creds, password_stdin)
    if password_stdin:
        raise AgentosError("invalid-creds", "there is a password but no user", hint="--creds USER --password-stdin")
    explicit = authfile or os.environ.get("REGISTRY_AUTH_FILE")
    path = explicit or os.path.join(os.path.expanduser("~"), ".docker", "config.json")
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        if not explicit:
            return "", ""
        raise AgentosError("invalid-authfile", "there is no such file", path) from None
    except OSError as error:
        raise AgentosError("invalid-authfile", error.strerror or str(error), path) from None
    return _of_file(content, reference, path)


def _given(creds: str, password_stdin: bool) -> tuple[str, str]:
    username, colon, password = creds.partition(":")
    if not username:
        raise AgentosError("invalid-creds", "the user is empty", hint="--creds USER or --creds USER:PASSWORD")
    if password_stdin:
        if colon:
            raise AgentosError("invalid-creds", "there are two passwords", hint="--creds USER --password-stdin")
        password = sys.stdin.readline(_SECRET_MAX).rstrip("\r\n")
    elif not colon:
        import click

        password = click.prompt(f"Password of {username}", hide_input=True, err=True)
    return username, password


def _of_file(content: bytes, reference: str, path: str) -> tuple[str, str]:
    try:
        if len(content) > _FILE_MAX:
            raise ValueError(f"it has more than {_FILE_MAX} bytes")
        found = msgspec.json.decode(content, type=_File)
    except (ValueError, RecursionError) as error:
        raise AgentosError("invalid-authfile", f"it is not understood: {error}"[:300], path) from None
    for place in _places(reference):
        if place in found.credHelpers:
            raise _helper(found.credHelpers[place], path)
        if (entry := _entry(found, place)) is not None:
            if entry.auth or entry.username:
                return _decoded(entry, path)
            if entry.identitytoken:
                hint = "--creds USER asks for the password"
                raise AgentosError("invalid-authfile", "it holds an identity token, which is not used", path, hint)
            if found.credsStore:  # docker leaves an empty entry for what its store holds
                raise _helper(found.credsStore, path)
    return "", ""


def _places(reference: str) -> list[str]:
    """What may be keys of a reference's credentials, from the narrowest to its host (containers-auth.json(5))."""
    name = reference.partition("@")[0]
    host, _, rest = name.partition("/")
    parts = [host, *rest.rpartition(":")[0].split("/")] if ":" in rest else [host, *rest.split("/")]
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _entry(found: _File, place: str) -> _Entry | None:
    """By the place itself, or as old versions of docker wrote it: ``https://HOST/v1/``."""
    for key, entry in found.auths.items():
        bare = key.removeprefix("https://").removeprefix("http://")
        if key == place or (bare != key and bare.partition("/")[0] == place):
            return entry
    return None


def _decoded(entry: _Entry, path: str) -> tuple[str, str]:
    if not entry.auth:
        return entry.username, entry.password
    try:
        username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise AgentosError("invalid-authfile", "an entry is not USER:PASSWORD in base64", path)
    return username, password.rstrip("\0")


def _helper(name: str, path: str) -> AgentosError:
    return AgentosError(
        "credential-helper",
        f"the password is with docker-credential-{name[:40]}, which is not run",
        path,
        "ask it yourself and hand the password over: … | agentos-native image pull --creds USER --password-stdin REF",
    )
