"""A damaged layer is marked by whoever looks, and replaced by whoever brings it again; see `images.damage`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.images.catalog import Catalog
from agentos_native.images.leases import Lease
from agentos_native.images.model import Image
from agentos_native.images.verify import Verification
from tests.stores import flip_one_bit, litter, make_image, measured


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "images")


def problems(catalog: Catalog) -> list[str]:
    return [finding.problem for finding in Verification(catalog, measured).run(None) if finding.problem]


def damaged(catalog: Catalog) -> Image:
    """An image whose second layer was changed, and looked at since."""
    image = make_image(catalog, "a", b"base", b"content")
    flip_one_bit(image.layers[1] / "file")
    assert len(problems(catalog)) == 1
    return image


def marks(catalog: Catalog) -> list[str]:
    return [f"sha256:{name}" for name in os.listdir(catalog.disk.damaged)]


def test_what_was_not_looked_at_is_believed(catalog: Catalog) -> None:
    image = make_image(catalog, "a", b"content")
    flip_one_bit(image.layers[0] / "file")
    assert catalog.known("diff:content") == image.stack[0]
    make_image(catalog, "b", b"content")
    assert len(problems(catalog)) == 1


def test_the_next_import_replaces_what_is_damaged_and_nothing_else(catalog: Catalog) -> None:
    image = damaged(catalog)
    assert marks(catalog) == [image.stack[1].digest]
    assert catalog.known("diff:content") is None and catalog.known("diff:base") == image.stack[0]
    before = image.layers[0].stat()
    assert make_image(catalog, "b", b"base", b"content").digest == image.digest
    assert (image.layers[1] / "file").read_bytes() == b"content"
    assert os.path.samestat(image.layers[0].stat(), before)
    assert marks(catalog) == [] == problems(catalog)
    assert catalog.known("diff:content") == image.stack[1]
    assert litter(catalog) == []


def test_what_is_gone_is_brought_back_without_a_mark(catalog: Catalog) -> None:
    image = make_image(catalog, "a", b"content")
    os.rename(image.layers[0], catalog.path / "elsewhere")
    assert "cannot be opened" in problems(catalog)[0]
    assert marks(catalog) == []
    with pytest.raises(AgentosError, match="image-damaged"):
        catalog.get("a")
    make_image(catalog, "b", b"content")
    assert catalog.get("a").digest == image.digest and problems(catalog) == []


def test_whoever_finds_it_whole_again_says_so(catalog: Catalog) -> None:
    image = damaged(catalog)
    flip_one_bit(image.layers[1] / "file")
    assert problems(catalog) == [] == marks(catalog)


def test_the_mark_goes_with_the_layer(catalog: Catalog) -> None:
    damaged(catalog)
    catalog.remove("a")
    assert marks(catalog) == []
    damaged(catalog)
    catalog.tag("a", "b")
    make_image(catalog, "a", b"other")
    catalog.remove("b")
    catalog.gc()
    assert marks(catalog) == []


def test_a_layer_of_a_running_agent_stays(catalog: Catalog) -> None:
    image = damaged(catalog)
    tree = image.layers[1].stat()
    catalog.damage.running = lambda: {image.digest: ["default/b", "default/a"]}
    with pytest.raises(AgentosError) as caught:
        make_image(catalog, "b", b"base", b"content")
    assert caught.value.code == "layer-in-use"
    assert "default/a, default/b" in caught.value.what and "stop default/a default/b" in caught.value.hint
    assert os.path.samestat(image.layers[1].stat(), tree)
    assert marks(catalog) == [image.stack[1].digest]
    assert [found.name for found in catalog.list()] == ["a"] and litter(catalog) == []
    catalog.damage.running = lambda: {"sha256:" + "0" * 64: []}
    make_image(catalog, "b", b"base", b"content")
    assert problems(catalog) == []


def test_agents_of_other_images_do_not_matter(catalog: Catalog) -> None:
    damaged(catalog)
    other = make_image(catalog, "other", b"base", b"other")
    catalog.damage.running = lambda: {other.digest: ["default/x"]}
    make_image(catalog, "b", b"base", b"content")
    assert problems(catalog) == []


def test_an_agent_that_begins_meanwhile_keeps_what_it_may_have_seen(catalog: Catalog) -> None:
    image = damaged(catalog)
    tree = image.layers[1].stat()
    answers: list[Mapping[str, Sequence[str]]] = [{}, {image.digest: ["default/late"]}]
    catalog.damage.running = lambda: answers.pop(0)
    with pytest.raises(AgentosError, match="layer-in-use"):
        make_image(catalog, "b", b"base", b"content")
    assert answers == []
    assert os.path.samestat(image.layers[1].stat(), tree)
    assert litter(catalog) == []


def test_what_a_build_works_with_stays(catalog: Catalog) -> None:
    image = damaged(catalog)
    with catalog.disk.locked():
        build = Lease(catalog.disk)  # as another process would have it
    catalog.get("a", lease=build)
    with pytest.raises(AgentosError, match="layer-in-use"):
        make_image(catalog, "b", b"base", b"content")
    build.end()
    make_image(catalog, "b", b"base", b"content")
    assert marks(catalog) == [] and image.digest == catalog.get("b").digest


def test_an_image_of_which_nobody_knows_the_layers_keeps_them_all(catalog: Catalog) -> None:
    damaged(catalog)
    broken = make_image(catalog, "broken", b"other")
    (catalog.disk.manifests / f"{broken.digest[7:]}.json").write_text("{")
    catalog.damage.running = lambda: {broken.digest: ["default/x"]}
    with pytest.raises(AgentosError, match="layer-in-use"):
        make_image(catalog, "b", b"base", b"content")
