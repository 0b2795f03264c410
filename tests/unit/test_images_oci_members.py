"""Which archives are read where they lie, what is found in them, and what nobody believes who looks; see
`images.oci.members` and `images.unpack.finding`."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images import worker
from agentos_native.images.oci import members
from agentos_native.images.oci.members import Members, Place, recall, remember
from agentos_native.images.unpack.finding import find
from agentos_native.images.unpack.messages import FOUND_MAX, Found

ONE, TWO = "1" * 64, "2" * 64
LAYOUT = {"oci-layout": b"{}", "index.json": b"[1]", f"blobs/sha256/{ONE}": b"x" * 1000, f"blobs/sha256/{TWO}": b""}
DOCKER = {"manifest.json": b"[]", f"{ONE}.json": b"{}", f"{ONE}.tar": b"y" * 513, f"{TWO}/VERSION": b"1.0"}

Entry = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(*entries: Entry, format: int = tarfile.USTAR_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def layout() -> list[Entry]:
    return [file(name, content) for name, content in LAYOUT.items()]


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """An fd of a file with that content."""
    opened: list[int] = []

    def make(content: bytes) -> int:
        path = tmp_path / f"t{len(opened)}.tar"
        path.write_bytes(content)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    yield make
    for descriptor in opened:
        os.close(descriptor)


def look(source: int) -> Members | None:
    """Both halves; whatever the child finds is believed, as it is no liar."""
    found = find(source)
    return None if found is None else Members(source, os.lseek(source, 0, os.SEEK_CUR), found)


def read(source: int) -> dict[str, bytes]:
    """All that was found, read as it would be."""
    found = look(source)
    assert found is not None
    content = {}
    for path in found._files:
        opened = found.open(path)
        assert opened.within
        content[path] = os.read(opened.fd, opened.size) if opened.size else b""
        os.close(opened.fd)
    return content


@pytest.mark.parametrize("files", [LAYOUT, DOCKER], ids=["layout", "docker"])
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar"])
def test_archives_of_gnu_tar_are_found_whole(
    tmp_path: Path, files: dict[str, bytes], form: str, put: Callable[[bytes], int]
) -> None:
    home = tmp_path / "home"
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    subprocess.run(["tar", f"--format={form}", "-cf", tmp_path / "made.tar", "-C", home, "."], check=True)
    source = put((tmp_path / "made.tar").read_bytes())
    assert read(source) == files
    found = look(source)
    assert found is not None and found.at_root == {name.partition("/")[0] for name in files}


def test_it_begins_where_the_fd_stands_and_leaves_it_there(put: Callable[[bytes], int]) -> None:
    source = put(b"before" + archive(*layout()))
    os.lseek(source, 6, os.SEEK_SET)
    assert read(source) == LAYOUT
    assert os.lseek(source, 0, os.SEEK_CUR) == 6


def test_a_shared_layer_is_found_by_its_link_where_links_are_followed(put: Callable[[bytes], int]) -> None:
    link = file(f"{TWO}/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{ONE}.tar")
    found = look(put(archive(file("manifest.json", b"[]"), file(f"{ONE}.tar", b"content"), link)))
    assert found is not None
    opened = found.open(f"{TWO}/layer.tar", links=True)
    assert os.read(opened.fd, opened.size) == b"content"
    os.close(opened.fd)
    with pytest.raises(AgentosError, match="invalid-layout"):
        found.open(f"{TWO}/layer.tar")
    with pytest.raises(AgentosError, match="blob-missing"):
        found.open(f"{ONE}/layer.tar", links=True)


@pytest.mark.parametrize("path", ["../index.json", "/etc/passwd", "blobs/sha256/../../../etc/passwd", "", "blobs"])
def test_no_path_leads_out(path: str, put: Callable[[bytes], int]) -> None:
    found = look(put(archive(*layout())))
    assert found is not None
    with pytest.raises(AgentosError, match="blob-missing"):
        found.open(path, links=True)


def changed(**fields: Any) -> Callable[[], bytes]:
    """One more member that is not understood."""
    name = fields.pop("name", f"blobs/sha256/{'3' * 64}")
    return lambda: archive(*layout(), file(name, **fields))


def lying(offset: int, field: bytes) -> Callable[[], bytes]:
    """The last header has another field, with a checksum that is right."""

    def make() -> bytes:
        whole = bytearray(archive(*layout(), file(f"blobs/sha256/{'3' * 64}", b"x")))
        start = whole.rindex(b"blobs/sha256/333")
        whole[start + offset : start + offset + len(field)] = field
        block = whole[start : start + 512]
        block[148:156] = b" " * 8
        whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        return bytes(whole)

    return make


def damaged() -> bytes:
    whole = bytearray(archive(*layout()))
    whole[2] ^= 1
    return bytes(whole)


def extended(records: bytes) -> Callable[[], bytes]:
    header = file("././@PaxHeader", records, type=tarfile.XHDTYPE)
    return lambda: archive(*layout()[:2], header, *layout()[2:])


NOT_UNDERSTOOD: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "an empty tar": archive,
    "no image": lambda: archive(file("index.json", b"[]"), file(f"{ONE}.json", b"")),
    "more than are said": lambda: archive(file("oci-layout"), *(file(f"{n:064}") for n in range(FOUND_MAX))),
    "no tar": lambda: b"\x1f\x8b" + bytes(2000),
    "cut in a header": lambda: archive(*layout())[:700],
    "cut in a blob": lambda: archive(*layout())[: -(10240 - 7 * 512)],
    "cut before its end": lambda: archive(*layout()).rstrip(b"\0") + bytes(512),
    "a bit of a header": damaged,
    "a name twice": lambda: archive(*layout(), file("index.json", b"other")),
    "a name twice, in two ways": lambda: archive(*layout(), file("./index.json", b"other")),
    "a file where files are in": lambda: archive(*layout(), file("blobs", b"")),
    "a file and a directory": lambda: archive(*layout(), file(ONE, b""), file(f"{ONE}/VERSION", b"")),
    "an absolute name": changed(name="/index.json"),
    "a way out": changed(name="../index.json"),
    "a way around": changed(name="blobs/sha256/../x"),
    "a root filesystem": changed(name="etc/passwd"),
    "another name": changed(name="note.txt"),
    "a link": changed(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a link out": changed(name=f"{TWO}/layer.tar", type=tarfile.SYMTYPE, linkname="../../x.tar"),
    "a hard link": changed(type=tarfile.LNKTYPE, linkname="index.json"),
    "a device": changed(type=tarfile.CHRTYPE),
    "a FIFO": changed(type=tarfile.FIFOTYPE),
    "a sparse file": changed(type=tarfile.GNUTYPE_SPARSE),
    "an old file": changed(type=tarfile.AREGTYPE),
    "a size beyond the end": lying(124, b"00000100000\0"),
    "a negative size": lying(124, b"-0000000001\0"),
    "a size in base 256": lying(124, b"\x80" + bytes(10) + b"\1"),
    "a size of words": lying(124, b"x0000000001\0"),
    "a directory with content": lying(156, b"5"),
    "a path in an extended header": extended(b"18 path=index.json\n"),
    "a size in an extended header": extended(b"10 size=1\n"),
    "an extended header with holes": extended(b"27 GNU.sparse.realsize=999\n"),
    "a hidden record": extended(b"12 mtime=1\n18 path=index.json\n"),
    "a record that is too short": extended(b"5 mtime=1.5\n"),
    "a record without end": extended(b"11 mtime=1"),
    "a huge extended header": extended(b"".join([b"20 comment=xxxxxxxxx\n"] * 300)),
}


@pytest.mark.parametrize("made", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_whatever_could_mean_something_else_is_for_the_unpacker(
    made: Callable[[], bytes], put: Callable[[bytes], int]
) -> None:
    assert look(put(made())) is None


def test_times_in_extended_headers_do_not_matter(put: Callable[[bytes], int]) -> None:
    assert read(put(extended(b"24 mtime=1700000000.123\n17 uname=someone\n")())) == LAYOUT


def test_a_pipe_is_for_the_unpacker() -> None:
    reading, writing = os.pipe()
    os.write(writing, archive(*layout())[:4096])
    assert look(reading) is None and Place.of(reading) is None
    assert len(os.read(reading, 8192)) == 4096
    os.close(reading)
    os.close(writing)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_a_crash_nor_another_file(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    whole = bytearray(archive(*layout()))
    whole[at % len(whole)] ^= 1 << bit
    descriptor = os.memfd_create("flipped")
    try:
        os.write(descriptor, whole)
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = look(descriptor)
        assert found is None or set(found._files) == set(LAYOUT)
        assert found is None or all(found._files[name].size == len(LAYOUT[name]) for name in LAYOUT)
    finally:
        os.close(descriptor)


GOOD = (("oci-layout", 512, 2), ("index.json", 1536, 3), (ONE, 2560, 1000))
LIES: dict[str, Found] = {
    "beyond the end": Found((*GOOD, (TWO, 4096, 10_240))),
    "an offset beyond the end": Found((*GOOD, (TWO, 1 << 40, 0))),
    "an offset that no file has": Found((*GOOD, (TWO, 1 << 80, 0))),
    "a negative offset": Found((*GOOD, (TWO, -512, 1))),
    "a negative size": Found((*GOOD, (TWO, 4096, -1))),
    "before it begins": Found((("oci-layout", 0, 2), *GOOD[1:])),
    "in the middle of a block": Found((*GOOD, (TWO, 4097, 1))),
    "one over another": Found((*GOOD, (TWO, 3072, 1))),
    "two in one place": Found((*GOOD, (TWO, 2560, 1000))),
    "no room for a header": Found((*GOOD, (TWO, 3584, 1))),
    "a name twice": Found((*GOOD, ("index.json", 4608, 1))),
    "a file and a link": Found((*GOOD, (f"{TWO}/layer.tar", 4608, 1)), ((f"{TWO}/layer.tar", f"{ONE}.tar"),)),
    "a link twice": Found(GOOD, ((f"{TWO}/layer.tar", f"{ONE}.tar"),) * 2),
    "a file where files are in": Found((*GOOD, (f"{ONE}/VERSION", 4608, 1))),
    "a way out": Found((*GOOD, ("../etc/passwd", 4608, 1))),
    "a way around": Found((*GOOD, (f"blobs/sha256/../{TWO}", 4608, 1))),
    "an absolute name": Found((*GOOD, ("/etc/passwd", 4608, 1))),
    "a name of two lines": Found((*GOOD, ("manifest.json\n", 4608, 1))),
    "another name": Found((*GOOD, ("note.txt", 4608, 1))),
    "no name": Found((*GOOD, ("", 4608, 1))),
    "a link of another name": Found(GOOD, (("index.json", f"{ONE}.tar"),)),
    "a link out": Found(GOOD, ((f"{TWO}/layer.tar", "../../x.tar"),)),
    "too many": Found(tuple((f"{number:064}", 512 * number + 512, 0) for number in range(FOUND_MAX + 1))),
    "too many links": Found(GOOD, tuple((f"{number:064}/layer.tar", f"{ONE}.tar") for number in range(FOUND_MAX))),
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_a_child_that_lies_is_found_out(said: Found, put: Callable[[bytes], int]) -> None:
    source = put(bytes(10_240))
    assert Members(source, 0, Found(GOOD)).at_root == {"oci-layout", "index.json", ONE}
    with pytest.raises(AgentosError, match="import-failed"):
        Members(source, 0, said)


def test_what_was_found_holds_for_the_same_file_alone(
    put: Callable[[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_SETTLED", 0)
    source = put(archive(*layout()))
    place, said = Place.of(source), find(source)
    assert place is not None and said is not None and recall(place, source) is None
    remember(place, said)
    again = recall(Place.of(source), source)
    assert again is not None and again.at_root == {"oci-layout", "index.json", "blobs"}
    os.lseek(source, 512, os.SEEK_SET)
    assert recall(Place.of(source), source) is None
    os.lseek(source, 0, os.SEEK_SET)
    os.utime(source)
    assert recall(Place.of(source), source) is None
    other = put(archive(*layout()))
    assert recall(Place.of(other), other) is None


def test_a_file_that_was_changed_a_moment_ago_is_not_remembered(
    put: Callable[[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_SETTLED", 10**18)
    source = put(archive(*layout()))
    place, said = Place.of(source), find(source)
    assert place is not None and said is not None
    remember(place, said)
    assert recall(place, source) is None


def test_the_longest_answer_fits_into_a_message() -> None:
    """Offsets as large as in a file of a pebibyte; the bound is that of the worker."""
    far = 1 << 50
    said = Found(
        tuple((f"blobs/sha256/{number:064}", far, far) for number in range(FOUND_MAX // 2)),
        tuple((f"{number:064}/layer.tar", f"{number:064}/layer.tar") for number in range(FOUND_MAX // 2)),
    )
    assert len(msgspec.json.encode(said)) < worker._LINE_MAX
