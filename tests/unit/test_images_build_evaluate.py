"""From instructions to a plan: stages, variables, configurations and steps, as Docker documents them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images.build.dockerfile import parse
from agentos_native.images.build.evaluate import evaluate
from agentos_native.images.build.model import Cache, Copy, Plan, Run, Stage
from agentos_native.images.model import Healthcheck, ImageConfig

PYTHON = ImageConfig(
    env=(("PATH", "/usr/bin"), ("A", "base")),
    entrypoint=("/entry",),
    cmd=("python3",),
    workdir="/srv",
    labels={"from": "base"},
    exposed=("80/tcp",),
)


def resolve(name: str) -> ImageConfig:
    if name.startswith("missing"):
        raise AgentosError("image-not-found", f"no image {name!r}", hint="there are: python:3.8")
    if name == "onbuild":
        return ImageConfig(on_build=("COPY . /src", "RUN make", "ENV B=$A"), env=(("A", "1"),))
    return PYTHON if name.startswith("python") else ImageConfig()


def plan(text: str, args: Mapping[str, str] | None = None, target: str = "", **more: Any) -> Plan:
    return evaluate(parse(text.encode()), args or {}, resolve, target, **more)


def last(text: str, args: Mapping[str, str] | None = None, target: str = "") -> Stage:
    return plan(text, args, target).stages[-1]


def config(text: str, args: Mapping[str, str] | None = None) -> ImageConfig:
    return last(text, args).steps[-1].config


def run(text: str, args: Mapping[str, str] | None = None) -> Run:
    found = last(text, args).steps[-1].run
    assert found is not None
    return found


def copy(text: str, args: Mapping[str, str] | None = None) -> Copy:
    found = last(text, args).steps[-1].copy
    assert found is not None
    return found


SEED = """\
FROM python:3.8

WORKDIR /app

COPY requirements.txt .
RUN pip install -r requirements.txt

COPY . .

CMD ["python", "agent.py"]
"""


def test_the_first_dockerfile_of_everybody() -> None:
    (stage,) = plan(SEED).stages
    assert (stage.base, stage.base_stage, stage.line, stage.text) == ("python:3.8", -1, 1, "FROM python:3.8")
    workdir, requirements, pip, rest, cmd = stage.steps
    assert (workdir.make_workdir, workdir.config.workdir) == ("/app", "/app")
    assert requirements.copy == Copy(sources=("requirements.txt",), destination="/app/")
    assert pip.run is not None
    assert pip.run.argv == ("/bin/sh", "-c", "pip install -r requirements.txt")
    assert (pip.run.workdir, dict(pip.run.env)["PATH"]) == ("/app", "/usr/bin")
    assert rest.copy == Copy(sources=(".",), destination="/app/")
    assert (cmd.config.entrypoint, cmd.config.cmd) == (("/entry",), ("python", "agent.py"))
    assert (cmd.line, cmd.text) == (10, 'CMD ["python", "agent.py"]')


# -- variables


@pytest.mark.parametrize(
    ("text", "args", "env"),
    [
        ("ENV a=1 b=$a", {}, {"a": "1", "b": ""}),
        ("ENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc", {}, {"abc": "bye", "def": "hello", "ghi": "bye"}),
        ('ENV a="x y" b=x\\ y c=\'$A\'', {}, {"a": "x y", "b": "x y", "c": "$A"}),
        ("ENV a some words ", {}, {"a": "some words"}),
        ("ENV a = b", {}, {"a": "= b"}),
        ("ENV a=$A", {}, {"a": "base"}),
        ("ARG A=arg\nENV a=$A", {"A": "given"}, {"a": "base"}),  # ENV of the base is before ARG
        ("ARG v\nENV a=$v", {}, {"a": ""}),
        ("ARG v\nENV a=$v", {"v": "given"}, {"a": "given"}),
        ("ARG v=1\nENV a=$v", {}, {"a": "1"}),
        ("ARG v=1\nENV a=$v", {"v": "given"}, {"a": "given"}),
        ("ARG v=1\nARG v=2\nENV a=$v", {}, {"a": "2"}),
        ("ENV a=$v\nARG v=1", {}, {"a": ""}),
        ("ARG v=1 w=2\nENV a=$v$w", {}, {"a": "12"}),
        ("ARG v=1\nARG w=$v/x\nENV a=$w", {}, {"a": "1/x"}),
        ("ARG v\nENV v=${v:-1.0}\nENV a=$v", {}, {"v": "1.0", "a": "1.0"}),
        ("ARG v\nENV v=${v:-1.0}", {"v": "2.0"}, {"v": "2.0"}),
        ("ARG global\nENV a=$global", {}, {"a": "g"}),
        ("ENV a=$global", {}, {"a": ""}),
        ("ARG global=mine\nENV a=$global", {}, {"a": "mine"}),
        ("ARG global\nENV a=$global", {"global": "given"}, {"a": "given"}),
        ("ARG TARGETARCH\nENV a=$TARGETARCH", {}, {"a": "amd64"}),
        ("ENV a=$TARGETARCH", {}, {"a": ""}),
        ("ARG BUILDOS TARGETPLATFORM\nENV a=$BUILDOS,$TARGETPLATFORM", {}, {"a": "linux,linux/amd64"}),
    ],
)  # fmt: skip
def test_where_values_come_from(text: str, args: dict[str, str], env: dict[str, str]) -> None:
    found = config(f"ARG global=g\nFROM python\n{text}\n", args)
    assert dict(found.env) == {"PATH": "/usr/bin", "A": "base"} | env


def test_run_has_the_args_too_and_proxies_without_asking() -> None:
    text = "FROM python\nARG v=1\nARG A=arg\nARG unset\nRUN x"
    assert dict(run(text, {"http_proxy": "p"}).env) == {"PATH": "/usr/bin", "A": "base", "v": "1", "http_proxy": "p"}
    assert plan(text, {"http_proxy": "p"}).notes == ()


def test_a_stage_has_the_args_of_the_stage_below_but_not_of_others() -> None:
    text = "FROM python AS one\nARG v=1\nENV e=2\nFROM {} AS two\nENV a=$v$e"
    assert dict(config(text.format("one")).env)["a"] == "12"
    assert dict(config(text.format("python")).env)["a"] == ""


def test_args_before_from_are_for_from() -> None:
    text = "ARG version=3.8\nARG image=python:$version\nFROM ${image} AS base\nFROM --platform=$BUILDPLATFORM base"
    assert plan(text).stages[0].base == "python:3.8"
    assert plan(text, {"version": "4"}).stages[0].base == "python:4"


def test_args_that_nobody_asks_for_are_noted() -> None:
    assert plan("FROM scratch\nARG a", {"a": "1", "b": "2"}).notes == ("--build-arg b: no ARG of that name",)


# -- configuration


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("WORKDIR /a\nWORKDIR b\nWORKDIR ../c", "workdir", "/a/c"),
        ("ENV D=/d\nWORKDIR $D/$E", "workdir", "/d"),
        ("WORKDIR ../../..", "workdir", "/"),
        ("WORKDIR //a/./b/", "workdir", "/a/b"),
        ("WORKDIR a b", "workdir", "/srv/a b"),
        ("USER ${U:-ada}:staff", "user", "ada:staff"),
        ("CMD a $A", "cmd", ("/bin/sh", "-c", "a $A")),
        ('CMD ["a", "$A"]', "cmd", ("a", "$A")),
        ("CMD []", "cmd", ()),
        ('SHELL ["/bin/bash", "-ec"]\nCMD a', "cmd", ("/bin/bash", "-ec", "a")),
        ("ENTRYPOINT a", "entrypoint", ("/bin/sh", "-c", "a")),
        ("ENTRYPOINT []", "entrypoint", ()),
        ("ENTRYPOINT a", "cmd", ()),
        ("CMD b\nENTRYPOINT a", "cmd", ("/bin/sh", "-c", "b")),
        ("ENTRYPOINT a\nCMD b", "cmd", ("/bin/sh", "-c", "b")),
        ("USER x", "cmd", ("python3",)),
        ('LABEL a=1 "b c"="d e"\nLABEL a=2 f=$A', "labels", {"from": "base", "a": "2", "b c": "d e", "f": "base"}),
        ("EXPOSE 80 53/udp 80/TCP", "exposed", ("80/tcp", "53/udp")),
        ("ENV P=8000-8002\nEXPOSE $P", "exposed", ("80/tcp", "8000/tcp", "8001/tcp", "8002/tcp")),
        ('VOLUME /a $A /a\nVOLUME ["/b c"]', "volumes", ("/a", "base", "/b c")),
        ("STOPSIGNAL SIGKILL", "stop_signal", "SIGKILL"),
        ("STOPSIGNAL term", "stop_signal", "SIGTERM"),
        ("STOPSIGNAL 9", "stop_signal", "9"),
        ("STOPSIGNAL SIGRTMIN+3", "stop_signal", "SIGRTMIN+3"),
        ("HEALTHCHECK NONE", "healthcheck", Healthcheck(test=("NONE",))),
        ("HEALTHCHECK CMD a || b", "healthcheck", Healthcheck(test=("CMD-SHELL", "a || b"))),
        (
            'HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=500ms --retries=3 \\\n CMD ["a", "b"]',
            "healthcheck",
            Healthcheck(
                test=("CMD", "a", "b"), interval=90 * 10**9, timeout=1_500_000_000, start_period=5 * 10**8, retries=3
            ),
        ),
        ("ONBUILD run make\nONBUILD COPY a b", "on_build", ("run make", "COPY a b")),
    ],
)
def test_what_becomes_of_the_configuration(text: str, field: str, value: object) -> None:
    assert getattr(config(f"FROM python\n{text}\n"), field) == value


def test_an_empty_user_is_root_as_docker_has_it_but_not_in_silence() -> None:
    found = plan("FROM python\nUSER ada\nUSER $x\n")
    assert found.stages[-1].steps[-1].config.user == ""
    assert found.notes == ("Dockerfile:3: USER is empty once its variables are expanded, which means root",)


@pytest.mark.parametrize("user", ["65536", "0:70000", "99999999999999999999", "$big"])
def test_users_that_no_agent_has(user: str) -> None:
    with pytest.raises(AgentosError) as caught:
        plan(f"FROM python\nARG big=70000\nUSER {user}\n")
    assert (caught.value.code, caught.value.where) == ("invalid-dockerfile", "Dockerfile:3")
    assert "65535" in caught.value.hint


def test_users_that_agents_have() -> None:
    assert config("FROM python\nUSER 65535:0\n").user == "65535:0"


def test_the_maintainer_is_the_author() -> None:
    assert plan("FROM python\nMAINTAINER Ada $A\n").author == "Ada base"


def test_every_step_has_the_configuration_after_it() -> None:
    steps = last("FROM python\nUSER a\nRUN x\nUSER b\nRUN y\n").steps
    assert [step.config.user for step in steps] == ["a", "a", "b", "b"]
    assert [step.run.user for step in steps if step.run is not None] == ["a", "b"]


def test_triggers_of_the_base_come_first_and_are_not_passed_on() -> None:
    stage = last("FROM onbuild\nUSER a\n")
    assert [step.text for step in stage.steps] == ["COPY . /src", "RUN make", "ENV B=$A", "USER a"]
    assert [step.line for step in stage.steps] == [1, 1, 1, 2]
    assert stage.steps[0].copy == Copy(sources=(".",), destination="/src")
    assert stage.steps[-1].config.on_build == ()
    assert dict(stage.steps[-1].config.env)["B"] == "1"


def test_a_stage_on_a_stage_carries_out_its_triggers() -> None:
    stages = plan("FROM python AS one\nONBUILD ENV C=$A\nFROM one\nUSER a\n").stages
    assert stages[0].steps[-1].config.on_build == ("ENV C=$A",)
    assert dict(stages[1].steps[-1].config.env)["C"] == "base"


# -- RUN


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("RUN a && b \\\n  c", ("/bin/sh", "-c", "a && b   c")),
        ('RUN ["a", "b c"]', ("a", "b c")),
        ('SHELL ["/bin/bash", "-c"]\nRUN a', ("/bin/bash", "-c", "a")),
        ("RUN <<EOF\na\nb\nEOF", ("/bin/sh", "-c", "a\nb\n")),
        ("RUN cat <<A - <<B > /x\n1\nA\n$2\nB", ("/bin/sh", "-c", "cat <<A - <<B > /x\n1\nA\n$2\nB")),
        (
            "RUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF",
            ("/bin/sh", "-c", "exec /usr/bin/env python3 /dev/fd/3 3<<'EOF'\nprint(1)\nEOF\n"),
        ),
    ],
)
def test_what_a_run_starts(text: str, argv: tuple[str, ...]) -> None:
    assert run(f"FROM python\n{text}\n").argv == argv


@pytest.mark.parametrize(("flag", "network"), [("", ""), ("--network=none ", "none"), ("--network=default ", "")])
def test_the_network_of_a_run(flag: str, network: str) -> None:
    assert run(f"FROM python\nRUN {flag}x\n").network == network


@pytest.mark.parametrize(
    ("mounts", "binds", "forgotten"),
    [
        ("--mount=type=cache,target=/root/.cache/pip,sharing=locked", (), ("/root/.cache/pip",)),
        ("--mount=type=tmpfs,dst=tmp,size=1000", (), ("/srv/tmp",)),
        ("--mount=target=/x", (Copy(sources=(".",), destination="/x"),), ("/x",)),
        (
            "--mount=type=bind,source=requirements.txt,target=/tmp/r.txt,ro",
            (Copy(sources=("requirements.txt",), destination="/tmp/r.txt"),),
            ("/tmp/r.txt",),
        ),
        (
            "--mount=from=one,src=/a/../b,target=$A/x,rw --mount=type=cache,target=/c --mount=type=cache,dst=/c",
            (Copy(sources=("/b",), destination="/srv/base/x", origin="0"),),
            ("/srv/base/x", "/c"),
        ),
    ],
)
def test_the_mounts_of_a_run(mounts: str, binds: tuple[Copy, ...], forgotten: tuple[str, ...]) -> None:
    found = run(f"FROM python AS one\nFROM python\nRUN {mounts} \\\n x\n")
    assert (found.binds, found.forgotten) == (binds, forgotten)
    assert found.argv == ("/bin/sh", "-c", "x")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("target=/c", Cache(target="/c", id="/c")),
        ("target=c,id=x", Cache(target="/srv/c", id="x")),
        ("dst=/c,sharing=shared,ro", Cache(target="/c", id="/c", sharing="shared", read_only=True)),
        ("target=/c,sharing=private,ro=false", Cache(target="/c", id="/c", sharing="private")),
        ("target=/c,mode=0700,uid=1000,gid=50", Cache(target="/c", id="/c", mode=0o700, uid=1000, gid=50)),
    ],
)
def test_the_caches_of_a_run(options: str, wanted: Cache) -> None:
    found = run(f"FROM python\nRUN --mount=type=cache,{options} x\n")
    assert (found.caches, found.forgotten) == ((wanted,), (wanted.target,))


def test_a_stage_that_only_a_mount_needs_is_needed() -> None:
    text = "FROM python AS one\nFROM python AS two\nFROM python\nRUN --mount=from=two,target=/x y"
    assert [stage.index for stage in plan(text).stages] == [1, 2]


def test_secrets_that_are_not_required_are_left_out() -> None:
    found = plan("FROM python\nRUN --mount=type=secret,id=x,target=/x y\n")
    assert found.notes == (
        "Dockerfile:2: --mount of type secret is left out: nothing of that kind is given to a build",
    )


# -- COPY and ADD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COPY a b", Copy(sources=("a",), destination="/srv/b")),
        ("COPY a .", Copy(sources=("a",), destination="/srv/")),
        ("COPY a ./", Copy(sources=("a",), destination="/srv/")),
        ("COPY a b/.", Copy(sources=("a",), destination="/srv/b/")),
        ("COPY a /", Copy(sources=("a",), destination="/")),
        ("COPY a ../../..", Copy(sources=("a",), destination="/")),
        ("COPY a b c/", Copy(sources=("a", "b"), destination="/srv/c/")),
        ('COPY ["a b", "/c d"]', Copy(sources=("a b",), destination="/c d")),
        ('COPY "a b" $A', Copy(sources=("a b",), destination="/srv/base")),
        ("COPY --chown=$A:1 a /b", Copy(sources=("a",), destination="/b", chown="base:1")),
        ("COPY --chmod=${M:-644} a /b", Copy(sources=("a",), destination="/b", chmod="644")),
        ("COPY --exclude=*.a --exclude=$A a /b", Copy(sources=("a",), destination="/b", exclude=("*.a", "base"))),
        ("COPY --link --parents a /b/", Copy(sources=("a",), destination="/b/", parents=True)),
        ("COPY --from=other:1 /a /b", Copy(sources=("/a",), destination="/b", origin="other:1")),
        ("ADD a /b", Copy(sources=("a",), destination="/b", unpack=True)),
        ("ADD --unpack=false a /b", Copy(sources=("a",), destination="/b")),
        (
            "COPY <<x <<'y' /b/\n$A \\$A\nx\n$A\ny",
            Copy(sources=(), destination="/b/", files=(("x", "base $A\n"), ("y", "$A\n"))),
        ),
        ("COPY a <<x /b/\n1\nx", Copy(sources=("a",), destination="/b/", files=(("x", "1\n"),))),
    ],
)  # fmt: skip
def test_what_a_copy_takes(text: str, expected: Copy) -> None:
    assert copy(f"FROM python\n{text}\n") == expected


# -- stages


STAGES = """\
FROM python AS one
RUN 1
FROM missing AS two
RUN 2
FROM One AS three
COPY --from=TWO /a /b
FROM one AS four
COPY --from=0 /a /b
COPY --from=other /c /d
FROM scratch
COPY --from=four /x /y
"""


def test_only_the_stages_that_the_target_needs() -> None:
    stages = plan(STAGES).stages
    assert [(stage.index, stage.name, stage.base, stage.base_stage) for stage in stages] == [
        (0, "one", "python", -1),
        (3, "four", "", 0),
        (4, "", "", -1),
    ]
    assert [step.copy.origin for stage in stages for step in stage.steps if step.copy] == ["0", "other", "3"]
    assert stages[1].config == stages[0].steps[-1].config
    assert stages[2].config == ImageConfig()


@pytest.mark.parametrize(("target", "indices"), [("one", [0]), ("FOUR", [0, 3]), ("3", [0, 3]), ("4", [0, 3, 4])])
def test_targets(target: str, indices: list[int]) -> None:
    assert [stage.index for stage in plan(STAGES, target=target).stages] == indices


def test_the_last_of_two_stages_of_a_name() -> None:
    text = "FROM python AS a\nUSER 1\nFROM python AS a\nUSER 2\nFROM a\nCOPY --from=a /x /y"
    assert [stage.index for stage in plan(text).stages] == [1, 2]


# -- errors


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("RUN x", 1, "there is no FROM", "begins with FROM"),
        ("RUN x\nFROM a", 1, "RUN before the first FROM", "ARG"),
        ("FROM $x", 1, "that is no image", "--build-arg"),
        ("FROM a b", 1, "FROM takes an image", ""),
        ("FROM a AS 1b", 1, "'1b' cannot be the name", "letters"),
        ("FROM a AS scratch", 1, "'scratch' cannot be the name", ""),
        ("FROM a\nCOPY --from=1 a b", 2, "--from=1: no earlier stage", ""),
        ("FROM a AS x\nCOPY --from=x a b", 2, "--from=x: no earlier stage", ""),
        ("FROM a\nCOPY b", 2, "a source and a destination", ""),
        ("FROM a\nCOPY b c d", 2, "need a directory", "/d/"),
        ("FROM a\nCOPY $x b", 2, "is empty", ""),
        ("FROM a\nCOPY --chmod=999 a b", 2, "--chmod=999: it is no mode", "755"),
        ("FROM a\nCOPY --link=x a b", 2, "neither true nor false", ""),
        ("FROM a\nCOPY <<../x /y\n../x", 2, "cannot be the name of a file", ""),
        ("FROM a\nENV a", 2, "'a' has no value", "name=value"),
        ("FROM a\nENV a=1 b", 2, "no = in 'b'", "quotes"),
        ("FROM a\nENV =1", 2, "no name before", ""),
        ("FROM a\nENV a=${b:?is_needed}", 2, "ENV: b: is_needed", ""),
        ("FROM a\nENV a='x", 2, "single quote", ""),
        ("FROM a\nWORKDIR $x", 2, "empty", ""),
        ("FROM a\nSHELL /bin/sh", 2, "JSON list", "SHELL ["),
        ("FROM a\nEXPOSE 99999", 2, "'99999' is no port", "8000-8010/tcp"),
        ("FROM a\nEXPOSE 80/x", 2, "'80/x' is no port", ""),
        ("FROM a\nSTOPSIGNAL SIGNOPE", 2, "is no signal", ""),
        ("FROM a\nHEALTHCHECK curl x", 2, "takes CMD", ""),
        ("FROM a\nHEALTHCHECK --interval=1x CMD a", 2, "no duration", "30s"),
        ("FROM a\nHEALTHCHECK --interval=1us CMD a", 2, "out of range", ""),
        ("FROM a\nHEALTHCHECK --retries=x CMD a", 2, "no number", ""),
        ("FROM a\nONBUILD ONBUILD RUN x", 2, "cannot be done on a later build", ""),
        ("FROM a\nONBUILD FROM x", 2, "cannot be done on a later build", ""),
        ("FROM a\nRUN []", 2, "no program", ""),
        ("FROM a\nRUN --mount=type=cache x", 2, "has no target", "target="),
        ("FROM a\nRUN --mount=type=cache,target=/c,sharing=never x", 2, "sharing='never'", "locked"),
        ("FROM a\nRUN --mount=type=cache,target=/c,mode=9 x", 2, "mode='9'", "7777"),
        ("FROM a\nRUN --mount=type=cache,target=/c,mode=17777 x", 2, "mode='17777'", "7777"),
        ("FROM a\nRUN --mount=type=cache,target=/c,uid=65536 x", 2, "uid='65536'", "65535"),
        ("FROM a\nRUN --mount=type=cache,target=/c,gid=me x", 2, "gid='me'", "a number"),
        ("FROM a\nRUN --mount=type=cache,target=/ x", 2, "hide everything", ""),
        ("FROM a\nRUN --mount=type=what,target=/a x", 2, "no type 'what'", "cache"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/a,id=x y", 2, "has no 'id'", "size"),
        ("FROM a\nRUN --mount='\"a' x", 2, "cannot be read", ""),
        ("FROM a\nADD --checksum=sha256:x b /c", 2, "nothing is", ""),
    ],
)
def test_errors_name_the_line(text: str, line: int, what: str, hint: str) -> None:
    with pytest.raises(AgentosError) as caught:
        plan(text, name="My.Dockerfile")
    assert caught.value.code == "invalid-dockerfile"
    assert what in caught.value.what
    assert caught.value.where == f"My.Dockerfile:{line}"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("RUN --mount=type=secret,id=x,required=true y", "--mount of type secret", "must not depend on secrets"),
        ("RUN --mount=type=ssh,required y", "--mount of type ssh", "COPY"),
        ("RUN --mount=type=cache,target=/x,from=python y", "--mount of type cache with from=", "COPY"),
        ("RUN --network=host y", "--network=host", "image build --network"),
        ("RUN --security=insecure y", "--security=insecure", "sandbox"),
        ("ADD https://example.org/x /y", "is not fetched", "COPY"),
        ("ADD git@example.org:x/y.git /y", "is not fetched", "COPY"),
        ("COPY --from=$A a b", "has a variable", "FROM ${NAME} AS source"),
    ],
)
def test_what_is_not_done_here_says_what_to_do(text: str, what: str, hint: str) -> None:
    with pytest.raises(AgentosError) as caught:
        plan(f"FROM python\n\n{text}")
    assert caught.value.code == "unsupported-instruction"
    assert what in caught.value.what
    assert caught.value.where == "Dockerfile:3"
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("act", "code", "where", "hint"),
    [
        (lambda: plan("FROM a\nFROM missing:1"), "image-not-found", "Dockerfile:2", "python:3.8"),
        (lambda: plan("FROM a\nCOPY --from=missing a b"), "image-not-found", "Dockerfile:2", "python:3.8"),
        (lambda: plan("FROM --platform=linux/arm64 a"), "unsupported-platform", "Dockerfile:1", "leave --platform out"),
        (lambda: plan("FROM a AS build\nFROM b", target="biuld"), "stage-not-found", "Dockerfile", "is build meant?"),
        (lambda: plan("FROM a AS build\nFROM b", target="2"), "stage-not-found", "Dockerfile", "with a name: build"),
    ],
)
def test_other_errors(act: Callable[[], Plan], code: str, where: str, hint: str) -> None:
    with pytest.raises(AgentosError) as caught:
        act()
    assert (caught.value.code, caught.value.where) == (code, where)
    assert hint in caught.value.hint


def test_what_doubles_with_every_line_ends_soon() -> None:
    with pytest.raises(AgentosError, match="longer than"):
        plan("FROM a\nENV a=12345678\n" + "ENV a=$a$a\n" * 64)
    with pytest.raises(AgentosError, match="larger than"):
        plan("FROM a\nENV a=" + "x" * 60_000 + "\n" + "".join(f"ENV b{i}=$a\n" for i in range(64)))


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["ARG a=" + "x" * 60_000, *(f"ARG b{i}=$a$a" for i in range(500))], id="values"),
        pytest.param(
            ["ENV a=" + "x" * 60_000, *(f"LABEL b=${{a}}{i}" for i in range(600))], id="one value, each its own"
        ),
        pytest.param(["ENV a=" + "x" * 8000, *["MAINTAINER " + "${a#*?*?*?*?y}" * 15] * 40], id="patterns"),
        pytest.param([f"ENV b{i}={i}" for i in range(3000)], id="variables"),
        pytest.param(["EXPOSE " + "1-65535 " * 100], id="ports"),
    ],
)
def test_what_a_file_becomes_has_a_bound_as_a_whole(lines: list[str]) -> None:
    with pytest.raises(AgentosError, match="too much for one file"):
        plan("\n".join(["FROM a", *lines]))


def test_directories_have_a_length() -> None:
    with pytest.raises(AgentosError, match="longer than 4095"):
        plan("FROM a\nARG a=" + "x" * 250 + "\n" + "WORKDIR $a\n" * 17)


def test_many_stages_that_need_one_another() -> None:
    text = "FROM a AS s0\n" + "".join(f"FROM s{i} AS s{i + 1}\nCOPY --from=s{i} a b\n" for i in range(120))
    assert len(plan(text).stages) == 121
    with pytest.raises(AgentosError, match="more than 128 stages"):
        plan("FROM a\n" * 129)


@settings(max_examples=120)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "LABEL", "WORKDIR", "USER", "CMD", "EXPOSE"])
            | st.sampled_from(["ENTRYPOINT", "HEALTHCHECK", "ONBUILD", "SHELL", "STOPSIGNAL", "VOLUME", "MAINTAINER"]),
            st.text('ab1 $={}:-/".\\[],<', min_size=1, max_size=14),
        ),
        max_size=8,
    )
)
def test_anything_is_a_plan_or_an_error_with_a_place(lines: list[tuple[str, str]]) -> None:
    text = "FROM python AS a\n" + "".join(f"{name} {rest}\n" for name, rest in lines)
    try:
        found = plan(text)
    except AgentosError as error:
        assert error.where.startswith("Dockerfile:")
        return
    assert found.stages[-1].index == max(stage.index for stage in found.stages)
