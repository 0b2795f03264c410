"""The Dockerfile of a Python agent as people have it, unchanged, on a Debian with Python named python:3.8.

``pip`` is the one of the Python that runs the tests, and what it installs comes from a directory of the image: nothing
is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pip
import pytest

from agentos_native.errors import AgentosError
from agentos_native.spec import agent_from_builtins
from agentos_native.wire.images import BuildRequest, ImageEvent
from tests.networks import require_outer_namespace
from tests.supervisors import Place, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """FROM debian-python
COPY pip /usr/lib/python3/dist-packages/pip
COPY wheels /wheels
COPY --chmod=755 pip.sh /usr/local/bin/pip
RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1
CMD ["python3"]
"""
AGENT = """FROM python:3.8

WORKDIR /app

COPY requirements.txt .
RUN pip install -r requirements.txt

COPY . .

CMD ["python", "agent.py"]
"""


def wheel(directory: Path) -> None:
    """A package of one module, as pip wants it."""
    files = {
        "greeting.py": "def greet(who):\n    return f'hello {who}'\n",
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(directory / "greeting-1.0-py3-none-any.whl", "w") as archive:
        record = ""
        for name, content in files.items():
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        archive.writestr("greeting-1.0.dist-info/RECORD", record + "greeting-1.0.dist-info/RECORD,,\n")


def build(ground: Place, context: Path, name: str) -> list[ImageEvent]:
    events = list(ground.client.build_image(BuildRequest(context=str(context), names=[name])))
    output = "\n".join(event.text for event in events if event.kind == "log")
    assert events[-1].kind == "done", f"{AgentosError.from_dict(events[-1].error or {})}\n{output}"
    return events


def test_a_dockerfile_as_people_have_it(tmp_path: Path) -> None:
    require_outer_namespace()
    tar = subprocess.run([ROOT / "rootfs/build", "python"], capture_output=True, text=True, check=True).stdout.strip()
    base, agent = tmp_path / "base", tmp_path / "agent"
    (base / "wheels").mkdir(parents=True)
    agent.mkdir()
    assert pip.__file__ is not None
    shutil.copytree(Path(pip.__file__).parent, base / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    wheel(base / "wheels")
    (base / "pip.sh").write_text('#!/bin/sh\nexec python3 -m pip "$@"\n')
    (base / "Dockerfile").write_text(PYTHON)
    (agent / "requirements.txt").write_text("greeting==1.0\n")
    (agent / "agent.py").write_text("import sys, greeting\nprint(greeting.greet('agent'), sys.argv)\n")
    (agent / "Dockerfile").write_text(AGENT)
    with place(tmp_path / "place", "bseed") as ground:
        launcher = ground.start()
        with open(tar, "rb") as file:
            ground.client.import_image("debian-python", file)
        build(ground, base, "python:3.8")
        build(ground, agent, "planner")
        made = ground.client.run(agent_from_builtins({"name": "planner", "image": "planner"}))
        assert ground.client.wait(made.id, 60).exit_status == 0
        assert [line.log for line in ground.client.logs(made.id)] == ["hello agent ['agent.py']"]
        (agent / "agent.py").write_text("print('changed')\n")
        again = build(ground, agent, "planner")
        assert sum(event.kind == "cached" for event in again) == 3  # WORKDIR, COPY, RUN: all but the last COPY
        ground.client.remove(made.id)
        assert ground.stop(launcher) == 0
