"""Dockerfiles as people have them, built and run: what instructions mean together, which no table shows."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.builds import built, events_of, said
from tests.supervisors import Place

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
