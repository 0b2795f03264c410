"""Builds with a real supervisor: what RUN sees, what its layer keeps, the cache, failures, and what a crash leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.wire.images import BuildRequest
from tests.builds import built, events_of, failure, said
from tests.supervisors import Place, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def agents_made(ground: Place) -> int:
    return sum(event.type == "created" for event in ground.client.events())


def state_of(ground: Place) -> tuple[list[str], list[str], list[str]]:
    """What a build must leave as it was: agents, their directories, images without a name."""
    agents = [agent.name for agent in ground.client.agents(ended=True)]
    directories = sorted(os.listdir(ground.directory / "state" / "agents"))
    unnamed = [image.digest for image in ground.client.images() if not image.names]
    return agents, directories, unnamed


SEEN = """FROM box
ARG V=one
ENV A=b
WORKDIR /work/place
RUN echo "$A $V $(pwd) $(id -u) $(hostname)" && touch mine
USER user
RUN echo "$(id -u):$(id -g) $HOME" && echo x > /tmp/file
USER 0
RUN ["/bin/busybox", "echo", "no $shell"]
RUN cp /bin/busybox /bin/su2 && chmod 4755 /bin/su2 \\
 && chown 1000:1000 /work && mkfifo /work/fifo && ln /work/fifo /work/same
RUN echo app:x:7:7::/:/bin/sh >> /etc/passwd
CMD ["stat", "-c", "%U %a", "/bin/su2"]
"""


def test_what_run_sees_and_what_its_layer_keeps(ground: Place, context: Path) -> None:
    before = state_of(ground)
    image, lines = built(ground, context, SEEN, names=["seen"], args={"V": "two"})
    assert lines[0] == "b two /work/place 0 build"
    assert lines[1].startswith("1000:1000 ")
    assert lines[2] == "no $shell"
    assert image.config["workdir"] == "/work/place"
    assert "V=two" not in image.config["env"]
    assert said(ground, "seen") == ["root 4755"]
    look = "stat -c '%u:%g %h' /work /work/fifo; cat /tmp/file; ls /work/place; cat /etc/hostname"
    assert said(ground, "seen", "sh", "-c", look) == ["1000:1000 1", "0:0 2", "x", "mine", "look"]
    layers = [Path(ground.directory / "state/images/layers", layer.digest[7:]) for layer in image.layers]
    assert len(layers) == 7
    assert not any((layer / "etc").exists() for layer in layers[1:-1])  # hosts, hostname, resolv.conf are not theirs
    assert os.listdir(layers[-1] / "etc") == ["passwd"]
    assert not any((layer / "proc").exists() for layer in layers[1:])
    assert {path.lstat().st_uid for layer in layers for path in layer.rglob("*")} <= {0, 1000}
    assert state_of(ground) == before


def test_what_is_deleted_stays_deleted(ground: Place, context: Path) -> None:
    text = """FROM box
RUN mkdir -p /opt/old /keep && touch /opt/old/file /keep/a /keep/b
RUN rm -rf /opt && mkdir /opt && touch /opt/new && rm /keep/a
RUN ls /opt /keep
"""
    _, lines = built(ground, context, text, names=["deleted"])
    assert lines == ["/keep:", "b", "", "/opt:", "new"]
    assert said(ground, "deleted", "ls", "/opt", "/keep") == ["/keep:", "b", "", "/opt:", "new"]


def test_nothing_changed_nothing_run(ground: Place, context: Path) -> None:
    (context / "one").write_text("1")
    text = "FROM box\nRUN echo before > /before\nCOPY one /one\nWORKDIR /made\nRUN cat /one > seen\n"
    first, _ = built(ground, context, text, names=["cached"])
    made = agents_made(ground)
    events = events_of(ground, context, text, names=["cached"])
    assert [event.kind for event in events if event.kind == "cached"] == ["cached"] * 4
    assert events[-1].image is not None
    assert events[-1].image.digest == first.digest
    assert agents_made(ground) == made
    (context / "one").write_text("2")
    second, _ = built(ground, context, text, names=["cached"])
    assert agents_made(ground) == made + 1
    assert second.digest != first.digest
    assert [layer.digest for layer in second.layers][:2] == [layer.digest for layer in first.layers][:2]
    assert said(ground, "cached", "cat", "/made/seen") == ["2"]
    (context / "one").write_text("1")
    third, _ = built(ground, context, text, names=["cached"])
    assert (third.digest, agents_made(ground)) == (first.digest, made + 1 + 1)  # one for `said`


def test_the_same_inputs_give_the_same_image(ground: Place, context: Path) -> None:
    (context / "one").write_text("1")
    text = 'FROM box\nCOPY one /one\nRUN mkdir /d && echo x > /d/f\nCMD ["a"]\n'
    first, _ = built(ground, context, text, no_cache=True)
    time.sleep(1.1)
    os.utime(context / "one")
    second, _ = built(ground, context, text, no_cache=True)
    assert first.digest == second.digest


def test_several_stages(ground: Place, context: Path) -> None:
    text = """FROM box AS make
RUN mkdir /out && echo made > /out/result && chown -R 1000:1000 /out
FROM scratch AS files
COPY --from=make /out /out
FROM box
COPY --from=files /out/result /result
COPY --from=make --chown=7:8 /out /mine
RUN cat /result && stat -c %u:%g /result /mine /mine/result
"""
    _, lines = built(ground, context, text)
    assert lines[0] == "made"
    assert lines[-1] == "7:8"
    image, _ = built(ground, context, text, target="files", names=["files"])
    assert len(image.layers) == 1


def test_run_has_no_network_unless_the_build_has(ground: Place, context: Path) -> None:
    look = "ls /sys/class/net; tail -n +2 /proc/net/route | wc -l"
    _, alone = built(ground, context, f"FROM box\nRUN {look}\n")
    assert alone == ["lo", "0"]
    text = f"FROM box\nRUN {look}\nRUN --network=none {look}\n"
    _, lines = built(ground, context, text, network="egress")
    assert len(lines) > 4
    assert lines[-2:] == ["lo", "0"]


def test_a_failing_step(ground: Place, context: Path) -> None:
    before = state_of(ground)
    text = "FROM box\nRUN echo good\n# comment\nRUN echo some output && \\\n    false\n"
    error = failure(events_of(ground, context, text, names=["bad"]))
    assert (error.code, error.where) == ("build-failed", "exit status 1")
    assert error.what.startswith("step 3/3 (Dockerfile:4) RUN echo some output")
    assert error.details["output"] == ["some output"]
    assert state_of(ground) == before
    assert not any("bad" in image.names for image in ground.client.images())
    made = agents_made(ground)
    events_of(ground, context, text)
    assert agents_made(ground) == made + 1  # the good one is known
    error = failure(events_of(ground, context, 'FROM box\nRUN ["/no/such/program"]\n'))
    assert "was not started" in error.where
    error = failure(events_of(ground, context, "FROM nowhere:1\n"))
    assert (error.code, "image pull" in error.hint) == ("image-not-found", True)
    assert state_of(ground) == before


def test_a_shell_in_what_a_failing_step_left(ground: Place, context: Path) -> None:
    text = "FROM box\nENV A=b\nWORKDIR /work\nRUN echo half > done && exit 9\n"
    events = events_of(ground, context, text, keep_failed=True)
    error = failure(events)
    assert error.details["exit_status"] == 9
    assert events[-1].shell == ["/bin/sh", "-c", "echo half > done && exit 9"]
    image = events[-1].failed_image
    assert said(ground, image, "sh", "-c", "cat done; echo $A; pwd") == ["half", "b", "/work"]
    ground.client.remove_image(image)


def test_a_client_that_goes_cancels_its_build(ground: Place, context: Path) -> None:
    before = state_of(ground)
    (context / "Dockerfile").write_text("FROM box\nRUN echo begun; sleep 1000\n")
    events = ground.client.build_image(BuildRequest(context=str(context)))
    for event in events:
        if event.kind == "log":
            break
    assert len(ground.client.agents()) == 1
    events.close()  # type: ignore[attr-defined]
    eventually(lambda: state_of(ground) == before, "nothing is left of it")


def test_nobody_takes_what_a_build_works_with(ground: Place, context: Path) -> None:
    (context / "file").write_text("kept\n")
    (context / "Dockerfile").write_text(
        "FROM box AS base\nCOPY file /file\nRUN echo one > /one\n"
        "FROM base\nRUN echo begun; sleep 1.5\n"
        "COPY --from=base /one /two\nRUN cat /file /one /two\n"
    )
    lines = []
    for event in ground.client.build_image(BuildRequest(context=str(context), names=["kept"])):
        if event.text == "begun":
            ground.client.collect_images(older_than=None)
            with pytest.raises(AgentosError, match="image-in-use"):
                ground.client.remove_image("box")
        if event.kind == "log":
            lines.append(event.text)
        assert event.kind != "failed", event.error
    assert lines == ["begun", "kept", "one", "one"]
    assert said(ground, "kept", "cat", "/two") == ["one"]


def test_two_builds_at_once(ground: Place, context: Path) -> None:
    text = "FROM box\nRUN echo {0} > /which && sleep 0.3\nRUN cat /which\nRUN echo same > /same\n"
    found: dict[int, list[str]] = {}

    def one(number: int) -> None:
        own = context / str(number)
        own.mkdir()
        found[number] = built(ground, own, text.format(number % 2), names=[f"at-once-{number}"])[1]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: lines[-1:] for number, lines in found.items() if lines} == {
        number: [str(number % 2)] for number in found if found[number]
    }
    assert len(found) == 4
    digests = {ground.client.image(f"at-once-{number}").digest for number in range(4)}
    assert len(digests) == 2


def test_limits_of_a_step(ground: Place, context: Path) -> None:
    text = "FROM box\nRUN cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/../memory.max 2>/dev/null; true\n"
    events = events_of(ground, context, text, memory_limit="much")
    assert failure(events).code.startswith("invalid-")


@pytest.mark.parametrize("victim", ["supervisor", "launcher"])
def test_kill_in_the_middle_of_a_build_leaves_nothing(ground: Place, context: Path, victim: str) -> None:
    before, launcher = state_of(ground), ground.running[-1].pid
    text = f"FROM box\nRUN echo {victim} > /good\nRUN echo begun; sleep 1000\n"
    (context / "Dockerfile").write_text(text)
    begun = threading.Event()

    def watch() -> None:
        with contextlib.suppress(AgentosError):
            for event in ground.client.build_image(BuildRequest(context=str(context))):
                if event.text == "begun" and event.kind == "log":
                    begun.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert begun.wait(60)
    if victim == "supervisor":
        os.kill(ground.supervisor(launcher), signal.SIGKILL)
        watcher.join(60)
        ground.wait_ready(ground.running[-1])
    else:
        ground.kill(launcher)
        watcher.join(60)
        ground.start()
    assert state_of(ground) == before
    assert (ground._members(), ground._links()) == ([], [])
    for part in ("tmp", "leases"):
        assert os.listdir(ground.directory / "state/images" / part) == []
    events = events_of(ground, context, f"FROM box\nRUN echo {victim} > /good\nRUN cat /good\n")
    assert [event.text for event in events if event.kind == "log"] == [victim]
    assert sum(event.kind == "cached" for event in events) == 1


def cli(ground: Place, *words: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    program = "import sys; from agentos_native.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--socket", ground.client.socket, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, input=data)


def test_the_command(ground: Place, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM box\nARG WHO=nobody\nRUN echo hello $WHO\n")
    done = cli(ground, "image", "build", "-t", "cli", "--build-arg", "WHO=you", "--label", "a=b", str(context))
    assert done.returncode == 0, done.stderr
    digest = ground.client.image("cli").digest
    assert done.stdout == f"{digest}\n"
    assert "#3 [3/3] RUN echo hello $WHO" in done.stderr
    assert "hello you" in done.stderr
    again = cli(ground, "image", "build", "-q", "-t", "cli", "--build-arg", "WHO=you", "--label", "a=b", str(context))
    assert (again.stdout, again.stderr) == (f"{digest}\n", "")
    plain = cli(ground, "image", "build", "--build-arg", "WHO=you", str(context))
    assert "#3 CACHED" in plain.stderr
    piped = cli(ground, "image", "build", "-q", "-f", "-", str(context), data="FROM box\nCOPY Dockerfile /\n")
    assert piped.returncode == 0, piped.stderr
    bad = cli(ground, "image", "build", "-f", "-", str(context), data="FROM box\n\nRUN echo why; exit 4\n")
    assert bad.returncode == 125
    assert "#2 ERROR" in bad.stderr
    assert "error[build-failed]: step 2/2 (Dockerfile:3) RUN echo why; exit 4: exit status 4" in bad.stderr
    assert "--debug-shell" in bad.stderr
    quiet = cli(
        ground, "image", "build", "-q", "-f", "-", str(context), data="FROM box\nRUN echo $((2+3)) said; exit 4\n"
    )
    assert quiet.stderr.startswith("5 said\nerror[build-failed]")
