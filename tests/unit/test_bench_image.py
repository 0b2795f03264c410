"""Which rows the image benchmark makes of its turns, which are held to a budget, and the sources it makes by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from tools.benches.image import layout_rows, layout_tar_rows, tar_rows
from tools.benches.image_layers import built_rows, started_rows
from tools.benches.image_memory import peak_rows
from tools.benches.image_sources import small_layers, write_layout
from tools.benches.machine import Shares
from tools.benches.report import Row
from tools.benches.rounds import Batch, Comparison, Times

QUIET = [0.0] * 8


def turns(durable: float, plain: float, steals: list[float], stages: tuple[float, ...] = ()) -> list[Batch]:
    """Turns of equal length in milliseconds, one for each steal."""
    kept = (tuple(stage * 1e3 for stage in stages),) if stages else ()
    times = Times((durable * 1e3,), (plain * 1e3,), durable * 1e3, kept)
    return [Batch(times, Shares(steal, 0.1)) for steal in steals]


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_the_verdict_about_tar_is_with_both_synced() -> None:
    comparison = Comparison(1, {"import": turns(1200, 1200, QUIET), "tar -x": turns(1000, 600, QUIET)})
    rows = by_name(tar_rows(comparison, "x", 1.3))
    row = rows["x: import against tar -x, both synced"]
    assert (row.value, row.ratio, row.budget, row.ok) == (1200, 1.2, 1.3, True)
    row = rows["x: import against tar -x that does not sync"]
    assert (row.ratio, row.budget, row.ok) == (2.0, None, None)
    slower = Comparison(1, {"import": turns(1400, 1400, QUIET), "tar -x": turns(1000, 600, QUIET)})
    assert by_name(tar_rows(slower, "x", 1.3))["x: import against tar -x, both synced"].ok is False


def test_on_a_tmpfs_all_is_only_told() -> None:
    comparison = Comparison(1, {"import": turns(1400, 1400, QUIET), "tar -x": turns(1000, 1000, QUIET)})
    rows = tar_rows(comparison, "x", None)
    assert all(row.ok is None and row.budget is None for row in rows)
    assert by_name(rows)["x: import against tar -x, both synced"].ratio == 1.4


def test_stolen_turns_prove_nothing() -> None:
    steals = [0.5] * 6 + [0.0] * 2
    comparison = Comparison(1, {"import": turns(900, 900, steals), "tar -x": turns(1000, 600, steals)})
    row = by_name(tar_rows(comparison, "x", 1.3))["x: import against tar -x, both synced"]
    assert row.ok is None
    assert "6 of 8 pairs dropped" in row.reason
    assert by_name(tar_rows(comparison, "x", 1.3))["x: steal in the worst turn"].value == 50


def test_the_second_import_is_held_against_the_first() -> None:
    theirs = turns(2000, 1500, QUIET)
    for second, ok in ((40.0, True), (60.0, False)):
        mine = turns(1000, 1000, QUIET, (1000.0, second))
        rows = by_name(layout_rows(Comparison(1, {"import": mine, "umoci unpack": theirs}), "x"))
        row = rows["x: second import against the first"]
        assert (row.value, row.ratio, row.budget, row.ok) == (second, second / 1000, 0.05, ok)
        assert rows["x: import against umoci unpack, both synced"].ok is True
        assert rows["x: import against umoci unpack that does not sync"].ratio == 1000 / 1500
    stolen = turns(1000, 1000, [0.5] * 8, (1000.0, 40.0))
    row = by_name(layout_rows(Comparison(1, {"import": stolen, "umoci unpack": theirs}), "x"))[
        "x: second import against the first"
    ]
    assert (row.ok, row.ratio) == (None, 0.04)


def test_a_layout_in_a_tar_again_and_in_another_file() -> None:
    slower = layout_tar_rows(Comparison(1, {"import": turns(1000, 1000, QUIET, (1000.0, 60.0, 60.0))}))
    assert [row.ok for row in slower] == [False, None]
    mine = turns(1000, 1000, QUIET, (1000.0, 40.0, 60.0))
    rows = by_name(layout_tar_rows(Comparison(1, {"import": mine})))
    same = rows["OCI layout in a tar: second import against the first"]
    other = rows["OCI layout in a tar: the same in another file against the first"]
    assert (same.ratio, same.budget, same.ok) == (0.04, 0.05, True)
    assert (other.ratio, other.budget, other.ok) == (0.06, None, None)
    assert layout_tar_rows(Comparison(1, {"import": turns(1000, 1000, [0.5] * 8, (1000.0, 40.0, 60.0))}))[0].ok is None


def test_starts_from_many_layers() -> None:
    for many, ok in ((12.0, True), (14.0, False)):
        comparison = Comparison(1, {"1 layer": turns(10, 10, QUIET), "40 layers": turns(many, many, QUIET)})
        row = by_name(started_rows(comparison))["start from 40 layers: request to exec p50, ratio"]
        assert (row.value, row.ratio, row.budget, row.ok) == (many, many / 10, 1.3, ok)


def test_memory_is_the_worst_that_was_seen() -> None:
    within, over = peak_rows([("tar", [20.0, 30.0]), ("more", [20.0, 65.0])])
    assert (within.value, within.budget, within.ok, within.spread) == (30.0, 64.0, True, (20.0, 30.0))
    assert (over.value, over.ok) == (65.0, False)


def test_a_build_with_nothing_to_do() -> None:
    first, again = built_rows(2.0, [0.2] * 8, [0.2] * 8)
    assert (first.value, first.budget) == (2.0, None)
    assert (again.value, again.budget, again.ok) == (0.2, 0.3, True)
    assert built_rows(2.0, [0.4] * 8, [0.4] * 8)[1].ok is False
    noisy = built_rows(2.0, [], [0.2] * 8)[1]
    assert (noisy.value, noisy.ok) == (0.2, None)
    assert "8 of 8 dropped" in noisy.reason


def test_the_layout_made_by_hand_is_what_it_says(tmp_path: Path) -> None:
    layers = small_layers(2)
    assert write_layout(tmp_path / "layout", layers) == 2
    blobs = tmp_path / "layout/blobs/sha256"
    for path in blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    index = json.loads((tmp_path / "layout/index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == 2
    for described, diff_id, layer in zip(manifest["layers"], config["rootfs"]["diff_ids"], layers, strict=True):
        plain = gzip.decompress((blobs / described["digest"][7:]).read_bytes())
        assert plain == layer
        assert diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(layers[1])) as archive:
        names = archive.getnames()
    assert "app/0/.wh.0" in names
    assert len([name for name in names if name.startswith("app/1/")]) == 50
