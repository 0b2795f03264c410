"""What an image says about its program, honoured by a real supervisor: an image of four layers over a busybox."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.model import Healthcheck, Image
from agentos_native.wire import api
from tests.images import needs_root
from tests.layers import Stack, file, opaque, whiteout
from tests.networks import require_outer_namespace
from tests.supervisors import Place, eventually, place

pytestmark = needs_root

ENTRY = """#!/bin/sh
echo "args: $*"
echo "ids: $(id -u):$(id -g) $(id -G)"
echo "at: $(pwd) $(stat -c %u:%a .)"
echo "home: $HOME color: $COLOR path: $PATH"
"""
WAIT = "#!/bin/sh\ntrap 'exit 3' INT\ntrap 'exit 4' TERM\necho ready\nwhile :; do sleep 0.1; done\n"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_outer_namespace()
    with place(tmp_path_factory.mktemp("images"), "imgrun") as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def image(ground: Place) -> Image:
    """Whiteouts, an opaque directory, users of an upper layer; an entrypoint that tells what it was given."""
    stack = Stack(ground.directory / "layers")
    lower = stack.layer()
    file(lower / "srv/old", "old")
    file(lower / "opt/cache/old", "old")
    file(lower / "etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    middle = stack.layer()
    whiteout(middle / "srv/old")
    opaque(middle / "opt/cache")
    file(middle / "opt/cache/new", "new")
    top = stack.layer()
    file(top / "etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1000:1001::/home/ada:/bin/sh\n")
    file(top / "etc/group", "root:x:0:\nada:x:1001:\naudio:x:29:ada\n")
    file(top / "entry", ENTRY, 0o755)
    file(top / "wait", WAIT, 0o755)
    catalog = Catalog(ground.directory / "state/images")
    return stack.into(
        catalog, "layered", catalog.get("box"),
        entrypoint=("/entry", "fixed"), cmd=("default",), env=(("COLOR", "blue"), ("PATH", "/bin:/opt/bin")),
        user="ada", workdir="/srv/app/data", labels={"org.example": "x"}, stop_signal="SIGINT",
        exposed=("8080/tcp",), volumes=("/data",), healthcheck=Healthcheck(test=("CMD", "/bin/true"), retries=3),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_agents(ground: Place) -> Iterator[None]:
    yield
    for agent in ground.client.agents(ended=True):
        ground.client.remove(agent.id, force=True)


def run(ground: Place, **fields: Any) -> dict[str, str]:
    """What the entrypoint tells, by its first words."""
    agent = ground.run("a", image="layered", start=False, **fields)
    output = b""
    with contextlib.closing(ground.client.attach(agent.id)) as stream:
        ground.client.start(agent.id)
        for frame in stream:
            output += frame.data if frame.channel in (api.CHANNEL_STDOUT, api.CHANNEL_STDERR) else b""
        assert stream.status is not None
        assert stream.status.exit_status == 0, output
    ground.client.remove(agent.id, force=True)
    return dict(line.split(": ", 1) for line in output.decode().splitlines())


def test_the_image_says_how_its_program_is_started(ground: Place, image: Image) -> None:
    assert run(ground) == {
        "args": "fixed default",
        "ids": "1000:1001 1001 29",
        "at": "/srv/app/data 0:755",
        "home": "/home/ada color: blue path: /bin:/opt/bin",
    }


def test_the_spec_s_word_counts(ground: Place, image: Image) -> None:
    said = run(ground, args=["one", "two words"], env={"COLOR": "red"}, user="0", workdir="/opt/cache")
    assert said == {
        "args": "fixed one two words",
        "ids": "0:0 0",
        "at": "/opt/cache 0:755",
        "home": "/root color: red path: /bin:/opt/bin",
    }
    assert run(ground, command=["/entry"])["args"] == ""  # with a command of one's own nothing of the image's is left
    assert run(ground, user="ada:audio")["ids"] == "1000:29 29"


def test_the_merged_layers_are_what_it_sees(ground: Place, image: Image) -> None:
    look = "echo opt: $(ls /opt/cache); echo srv: $(ls /srv | wc -l); echo users: $(grep -c . /etc/passwd)"
    assert run(ground, command=["/bin/sh", "-c", look], workdir="/") == {"opt": "new", "srv": "0", "users": "2"}


def test_a_read_only_root_has_its_working_directory(ground: Place, image: Image) -> None:
    said = run(ground, readOnly=True, command=["/bin/sh", "-c", "echo at: $(pwd); echo new: $(touch x 2>&1)"])
    assert said["at"] == "/srv/app/data"
    assert "Read-only" in said["new"]


def test_a_volume_gets_no_directories_of_ours(ground: Place, image: Image, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(AgentosError, match="workdir"):
        run(ground, volumes=[{"source": str(tmp_path / "data"), "target": "/srv"}])
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(("own", "status"), [({}, 3), ({"stop": {"signal": "TERM"}}, 4)])
def test_stop_sends_the_image_s_signal(ground: Place, image: Image, own: dict[str, Any], status: int) -> None:
    agent = ground.run("waits", "/wait", image="layered", **own)
    eventually(lambda: b"ready" in b"".join(line for line in logged(ground, agent)), "it waits")
    assert ground.client.stop(agent.id).exit_status == status


def logged(ground: Place, agent: api.Agent) -> list[bytes]:
    return [path.read_bytes() for path in Path(ground.directory, "state/agents", agent.id).glob("output*")]


def test_a_further_process_has_the_same_surroundings(ground: Place, image: Image) -> None:
    agent = ground.run("waits", "/wait", image="layered")
    output = b""
    with contextlib.closing(ground.client.exec(agent.id, ["/entry"])) as stream:
        for frame in stream:
            output += frame.data
    said = output.decode()
    assert "ids: 1000:1001 1001 29" in said
    assert "at: /srv/app/data" in said
    assert "home: /home/ada color: blue" in said


def test_inspect_shows_what_the_image_says_and_what_agents_do_not_get(ground: Place, image: Image) -> None:
    shown = ground.client.image("layered")
    assert shown.config["labels"] == {"org.example": "x"}
    assert shown.config["stop_signal"] == "SIGINT"
    assert shown.config["exposed"] == ["8080/tcp"]
    assert shown.config["volumes"] == ["/data"]
    assert shown.config["healthcheck"]["test"] == ["CMD", "/bin/true"]
    assert [note.split()[0] for note in shown.notes] == ["VOLUME", "HEALTHCHECK", "EXPOSE"]


def test_nothing_of_a_start_with_a_bad_image_is_left(ground: Place, image: Image) -> None:
    """A WORKDIR behind a file cannot be made: the start fails, and takes all back."""
    stack = Stack(ground.directory / "bad")
    file(stack.layer() / "x")
    catalog = Catalog(ground.directory / "state/images")
    stack.into(catalog, "bad", image, entrypoint=("/entry",), workdir="/entry/below")
    mounts = Path("/proc/self/mountinfo").read_text()
    with pytest.raises(AgentosError, match="workdir-not-made"):
        ground.run("a", image="bad")
    assert Path("/proc/self/mountinfo").read_text() == mounts
    for agent in ground.client.agents(ended=True):
        ground.client.remove(agent.id, force=True)
    assert list((ground.directory / "state/agents").iterdir()) == []
