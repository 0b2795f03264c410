"""Dockerfiles as people have them, built and run: what instructions mean together, which no table shows."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

from agentos_native.wire.images import BuildRequest
from tests.builds import built, events_of, said
from tests.supervisors import Place, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


RICH = """\
# syntax=docker/dockerfile:1
ARG IMAGE=box
FROM ${IMAGE} AS one
ARG V=7
ENV X=$V Y="a b"
WORKDIR /w
COPY --chmod=600 a ./in
ADD archive.tgz /un/
COPY <<EOF /etc/motd
motd $V
EOF
RUN <<'EOF'
echo script $X > script
for i in 1 2; do echo $i >> script; done
EOF
RUN <<EOF
#!/bin/sh
echo "shebang $Y" > shebang
EOF
RUN cat <<A > here && echo more >> here
heredoc $V
A
FROM scratch
COPY --from=one / /
WORKDIR /w
SHELL ["/bin/sh", "-ec"]
CMD ls in; stat -c %a in/f; cat script shebang here /etc/motd /un/deep/x; pwd
"""


def test_heredocs_archives_and_stages(ground: Place, context: Path) -> None:
    (context / "a").mkdir()
    (context / "a/f").write_text("f")
    (context / "a/g.log").write_text("g")
    (context / ".dockerignore").write_text("**/*.log\n")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("deep/x")
        member.size = 9
        archive.addfile(member, io.BytesIO(b"unpacked\n"))
    (context / "archive.tgz").write_bytes(gzip.compress(out.getvalue()))
    lines = said(ground, built(ground, context, RICH)[0].digest)
    assert lines[:2] == ["f", "600"]
    assert lines[2:] == ["script 7", "1", "2", "shebang a b", "heredoc 7", "more", "motd 7", "unpacked", "/w"]


MOUNTS = """\
FROM box AS one
RUN mkdir /o && echo from one > /o/f
FROM box
WORKDIR /w
RUN --mount=type=bind,source=req.txt,target=/deep/req.txt --mount=type=cache,target=/var/cache/pip \\
    --mount=type=tmpfs,target=/scratch --mount=from=one,source=/o,target=/from --mount=type=secret,id=s \\
    cat /deep/req.txt /from/f > out && touch /var/cache/pip/j /scratch/j /from/new && rm /deep/req.txt && touch /kept
CMD cat out; ls -d /kept; ls -d /var/cache/pip /scratch /from /deep/req.txt 2>/dev/null; true
"""


def test_mounts_are_there_for_their_run_only(ground: Place, context: Path) -> None:
    (context / "req.txt").write_text("first\n")
    events = events_of(ground, context, MOUNTS)
    image, _ = built(ground, context)
    assert said(ground, image.digest) == ["first", "from one", "/kept"]
    assert [event.text for event in events if event.kind == "note"] == [
        "Dockerfile:5: --mount of type secret is left out: nothing of that kind is given to a build"
    ]
    assert [event.step for event in events_of(ground, context) if event.kind == "cached"] == [2, 4, 5]
    (context / "req.txt").write_text("second\n")
    assert said(ground, built(ground, context)[0].digest) == ["second", "from one", "/kept"]


CACHED = """\
FROM box
ARG N
RUN --mount=type=cache,target=/var/x,id=kept echo $N >> /var/x/all; cat /var/x/all; stat -c %u:%a /var/x
RUN test ! -e /var/x/all
RUN --mount=type=cache,target=/ro,id=kept,ro cat /ro/all; ! touch /ro/new
USER 1000
RUN --mount=type=cache,target=/own,uid=1000,mode=700 id -u > /own/$N; ls /own
"""


def test_a_cache_keeps_what_runs_leave_in_it_and_is_no_part_of_the_image(ground: Place, context: Path) -> None:
    ground.client.collect_images(older_than=None)
    first, lines = built(ground, context, CACHED, args={"N": "1"})
    assert lines == ["1", "0:755", "1", "touch: /ro/new: Read-only file system", "1"]
    second, lines = built(ground, context, args={"N": "2"})
    assert lines == ["1", "2", "0:755", "1", "2", "touch: /ro/new: Read-only file system", "1", "2"]
    assert not [
        change for change in ground.client.diff_image(second.digest, first.digest).changes if "all" in change.path
    ]
    assert [event for event in events_of(ground, context, args={"N": "2"}) if event.kind == "log"] == []
    kept = ground.client.collect_images(dry_run=True, older_than=None)
    assert kept.caches == 2 and ground.client.collect_images().caches == 0
    assert ground.client.collect_images(older_than=None).caches == 2
    _, lines = built(ground, context, args={"N": "3"})
    assert lines[:2] == ["3", "0:755"]


class Building:
    """A build in a thread; what it said and whether it is through, as it goes."""

    def __init__(self, ground: Place, context: Path, script: str, mount: str) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._ground = ground
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM box\nRUN --mount=type=cache,target=/c,{mount} {script}\n")
        self._request = BuildRequest(context=str(context), no_cache=True)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for event in self._ground.client.build_image(self._request):
            if event.kind in ("log", "note"):
                (self.lines if event.kind == "log" else self.notes).append(event.text)
        self.lines.append(event.kind)


WAITS = "echo begun; while [ ! -e /c/go ]; do sleep 0.05; done; rm /c/go; echo first >> /c/log"


def test_a_cache_that_is_shared_is_there_for_both(ground: Place, context: Path) -> None:
    first = Building(ground, context / "1", WAITS, "id=shared,sharing=shared")
    eventually(lambda: first.lines == ["begun"], "the first build runs")
    second = Building(ground, context / "2", "touch /c/go", "id=shared,sharing=shared")
    second.thread.join(60)
    first.thread.join(60)
    assert (first.lines, second.lines, second.notes) == (["begun", "done"], ["done"], [])


def test_otherwise_the_second_build_waits(ground: Place, context: Path) -> None:
    first = Building(ground, context / "1", WAITS, "id=locked")
    eventually(lambda: first.lines == ["begun"], "the first build runs")
    second = Building(ground, context / "2", "cat /c/log", "id=locked")
    eventually(lambda: second.notes == ["waits for a cache that another build has"], "the second one waits")
    (agent,) = [agent for agent in ground.client.agents() if agent.name.startswith("build-")]
    with ground.client.exec(agent.id, ["touch", "/c/go"]) as stream:
        assert [frame for frame in stream if frame.channel == 2] == []
    first.thread.join(60)
    second.thread.join(60)
    assert (first.lines, second.lines) == (["begun", "done"], ["first", "done"])
