"""Images where the kernel is another one: layers under Linux 6.12, and what other people's programs make of ours.

One supervisor, as users have it. 6.12 takes no detached mounts for layers of an overlay, which is what it has instead
on the machines that most people run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos_native.images import ImageStore, overlay
from agentos_native.images.overlay import Style
from agentos_native.wire import api
from tests.images import userns
from tests.layers import Stack, file, opaque, whiteout
from tests.sandboxes import busybox_rootfs
from tests.supervisors import Place

ENTRY = """#!/bin/sh
echo "args $* color $COLOR at $(pwd) ids $(id -u):$(id -g)"
echo $(ls /opt/cache) and $(ls /srv | wc -l)
"""
SAID = "args {} color {} at /srv/app ids 1000:1001\n{} and {}\n"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("images"), "images-vm")
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def store(ground: Place) -> ImageStore:
    """An image of three layers: a whiteout, an opaque directory, users of an upper layer, a WORKDIR not made yet."""
    store = ImageStore(ground.directory / "state")
    stack = Stack(ground.directory / "layers")
    lower = busybox_rootfs(stack.layer())
    file(lower / "srv/old", "old")
    file(lower / "opt/cache/old", "old")
    middle = stack.layer()
    whiteout(middle / "srv/old")
    opaque(middle / "opt/cache")
    file(middle / "opt/cache/new", "new")
    top = stack.layer()
    file(top / "etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1000:1001::/home/ada:/bin/sh\n")
    file(top / "entry", ENTRY, 0o755)
    stack.into(
        store.catalog, "layered", entrypoint=("/entry", "fixed"), cmd=("default",), user="ada", workdir="/srv/app",
        env=(("COLOR", "blue"), ("PATH", "/bin")),
    )  # fmt: skip
    return store


def run(ground: Place, image: str, **fields: Any) -> str:
    """What an agent of the image says."""
    agent = ground.run("one", image=image, start=False, **fields)
    output = b""
    with contextlib.closing(ground.client.attach(agent.id)) as stream:
        ground.client.start(agent.id)
        for frame in stream:
            output += frame.data if frame.channel in (api.CHANNEL_STDOUT, api.CHANNEL_STDERR) else b""
    ground.client.remove(agent.id, force=True)
    return output.decode()


def test_layers_under_this_kernel(ground: Place, store: ImageStore) -> None:
    assert run(ground, "layered") == SAID.format("fixed default", "blue", "new", 1)
    assert run(ground, "layered", args=["own"], readOnly=True) == SAID.format("fixed own", "blue", "new", 1)
    layers = store.get("layered").layers
    mounts = Path("/proc/self/mountinfo").read_text()
    with userns() as namespace:
        os.close(overlay.view(layers, namespace))
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert overlay._style is (Style.ATTACHED if release < (6, 15) else Style.BY_FD)
    assert Path("/proc/self/mountinfo").read_text() == mounts


def sh(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def test_crun_and_umoci_take_our_images_and_we_take_theirs(ground: Place, store: ImageStore, tmp_path: Path) -> None:
    """Out by an export, unpacked by umoci and run by crun; changed and repacked by umoci, in by an import."""
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    with open(tmp_path / "layout.tar", "wb") as out:
        store.export("layered", out.fileno())
    layout.mkdir()
    sh("tar", "-C", layout, "-xf", tmp_path / "layout.tar")
    (tag,) = [
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in json.loads((layout / "index.json").read_text())["manifests"]
    ]
    sh("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    (bundle / "rootfs/srv/app").mkdir()  # Docker makes the working directory, crun does not
    (bundle / "config.json").write_text(json.dumps(config))
    assert sh("crun", "run", "--bundle", bundle, "ours") == SAID.format("fixed default", "blue", "new", 1)

    (bundle / "rootfs/opt/cache/new").unlink()
    (bundle / "rootfs/opt/cache/theirs").write_text("theirs")
    (bundle / "rootfs/srv/app").rmdir()
    sh("umoci", "repack", "--image", f"{layout}:{tag}", bundle)
    ground.client.import_image("theirs", str(layout))
    assert len(store.get("theirs").layers) == 4
    assert run(ground, "theirs") == SAID.format("fixed default", "blue", "theirs", 1)
