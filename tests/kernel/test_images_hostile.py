"""Archives and sources made to do harm, in a real confined worker: a clear error, nothing kept, nothing reached."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images import ImageStore, Limits
from agentos_native.images.session import Session
from tests.images import add, listing, make_tar, make_tree, needs_root

pytestmark = needs_root

CODES = {"hostile-archive", "invalid-archive", "image-too-large", "image-not-written"}
"""What a damaged or hostile archive may be called."""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(Limits(entries=5000)) as session:
        yield session


class Outcome:
    """What an archive came to: an error, or a tree."""

    def __init__(self, session: Session, place: Path, archive: bytes, kind: str = "tar") -> None:
        place.mkdir()
        tree = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        source = os.memfd_create("archive")
        self.error: AgentosError | None = None
        self.place = place
        try:
            os.write(source, archive)
            os.lseek(source, 0, os.SEEK_SET)
            session.unpack(source, tree, kind=kind)  # type: ignore[arg-type]
        except AgentosError as error:
            self.error = error
        finally:
            os.close(tree)
            os.close(source)


def archive(*builders: Callable[[tarfile.TarFile], None], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for build in builders:
            build(tar)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> Callable[[tarfile.TarFile], None]:
    return lambda tar: add(tar, name, kind, **fields)


# -- escapes

PIECES = {
    "link": entry("l", tarfile.SYMTYPE, linkname="{victim}"),
    "directory": entry("l", tarfile.DIRTYPE),
    "through": entry("l/owned"),
    "hard": entry("h", tarfile.LNKTYPE, linkname="l/secret"),
}


@pytest.mark.parametrize("order", list(permutations(PIECES)), ids="-".join)
@pytest.mark.parametrize("kind", ["tar", "layer"])
def test_links_lead_nowhere_in_any_order(session: Session, tmp_path: Path, order: Sequence[str], kind: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret").write_text("s")
    before = listing(victim)
    pieces = PIECES | {"link": entry("l", tarfile.SYMTYPE, linkname=str(victim))}
    outcome = Outcome(session, tmp_path / "tree", archive(*(pieces[name] for name in order)), kind)
    assert outcome.error is not None  # the hard link has no target inside in any of these
    assert outcome.error.code == "hostile-archive"
    assert listing(victim) == before
    assert (victim / "secret").stat().st_nlink == 1


CVES = {
    # filter="data" checked realpath(), which gives up on paths beyond PATH_MAX (CVE-2025-4517, CVE-2025-4330)
    "CVE-2025-4517": [
        *(entry("/".join(["d" * 247] * depth), tarfile.DIRTYPE) for depth in range(1, 16)),
        entry("/".join(["d" * 247] * 15) + "/l", tarfile.SYMTYPE, linkname="../" * 15),
        entry("escape", tarfile.SYMTYPE, linkname="/".join(["d" * 247] * 15) + "/l/../../../../../../../.."),
        entry("escape/owned"),
    ],
    # a hard link to a symbolic link that is outside when followed (CVE-2025-4138)
    "CVE-2025-4138": [
        entry("a", tarfile.SYMTYPE, linkname="../../../../../../../../{victim}/secret"),
        entry("b", tarfile.LNKTYPE, linkname="a"),
        entry("b/owned"),
    ],
    # an entry that is skipped as a link and made as a directory afterwards (CVE-2024-12718 changed attributes so)
    "CVE-2024-12718": [entry("x/../../victim", tarfile.DIRTYPE, mode=0o777)],
    # names with a trailing slash are directories for some (CVE-2025-11468, and older)
    "slash": [entry("f"), entry("f/", tarfile.SYMTYPE, linkname="/"), entry("f//owned")],
}


@pytest.mark.parametrize("name", list(CVES))
def test_cpython_tarfile_holes(session: Session, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").mkdir(0o700)
    before = listing(tmp_path / "victim"), (tmp_path / "victim").stat().st_mode
    outcome = Outcome(session, tmp_path / "tree", archive(*CVES[name]))
    assert outcome.error is not None
    assert outcome.error.code == "hostile-archive"
    assert (listing(tmp_path / "victim"), (tmp_path / "victim").stat().st_mode) == before
    assert not list(tmp_path.glob("owned")) and not Path("/owned").exists()


def test_a_negative_offset_does_not_loop(session: Session, tmp_path: Path) -> None:
    """CVE-2025-8194: a negative size made tarfile go backwards for ever."""
    data = bytearray(archive(entry("a"), entry("b")))
    data[124:136] = b"\xff" * 4 + (-1024).to_bytes(8, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    began = time.monotonic()
    outcome = Outcome(session, tmp_path / "tree", bytes(data))
    assert outcome.error is not None and outcome.error.code in CODES
    assert time.monotonic() - began < 20


def test_duplicate_names_the_last_counts(session: Session, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("f")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    outcome = Outcome(session, tmp_path / "tree", out.getvalue())
    assert outcome.error is None
    assert (outcome.place / "f").read_bytes() == b"two"


def test_names_that_are_not_utf8_land_as_they_are(session: Session, tmp_path: Path) -> None:
    tree = tmp_path / "source"
    tree.mkdir()
    name = os.fsencode(tree) + b"/\xff\xfe-\xe9"
    with open(name, "wb") as file:
        file.write(b"x")
    packed = subprocess.run(["tar", "-C", tree, "-c", "."], check=True, capture_output=True).stdout
    outcome = Outcome(session, tmp_path / "tree", packed)
    assert outcome.error is None
    assert os.listdir(os.fsencode(outcome.place)) == [b"\xff\xfe-\xe9"]


# -- damage


def test_flipping_any_97th_byte_never_changes_the_store(tmp_path: Path) -> None:
    """In gzip every flip is found; in a plain tar a flip in a file's content makes another image, and nothing else."""
    tree = make_tree(tmp_path / "source")
    for name in ("sparse", "absolute-link", "queue", "empty", "home/ada/diary"):
        (tree / name).unlink()
    plain = make_tar(tree, tmp_path / "t.tar").read_bytes()
    plain = plain.rstrip(b"\0") + bytes(1024 + -len(plain.rstrip(b"\0")) % 512)
    packed = gzip.compress(plain, mtime=0)
    with Session() as session:
        for data, form in ((packed, "gzip"), (plain, "plain")):
            for position in range(0, len(data), 97):
                damaged = data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :]
                outcome = Outcome(session, tmp_path / f"{form}-{position}", damaged)
                if outcome.error is not None:
                    assert outcome.error.code in CODES, (form, position, outcome.error)
                    assert outcome.error.what
                elif form == "gzip":
                    assert position in range(4, 10), position  # time, flags and system of gzip's header: of no meaning


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_cutting_an_archive_anywhere_is_an_error(session: Session, tmp_path: Path, form: str) -> None:
    plain = archive(entry("a"), entry("d", tarfile.DIRTYPE), entry("d/b"))[: 4 * 512]  # one block of zeros is an end
    data = gzip.compress(plain) if form == "gzip" else plain
    for length in range(0, len(data) - 1, 97):
        outcome = Outcome(session, tmp_path / str(length), data[:length])
        assert outcome.error is not None, length
        assert outcome.error.code == "invalid-archive"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(min_size=1, max_size=512), max_size=4), st.integers(0, 7))
def test_any_bytes_are_an_error_or_a_tree(
    session: Session, tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes], at: int
) -> None:
    data = bytearray(archive(*(entry(f"f{number}") for number in range(3))))
    for offset, block in enumerate(blocks):
        start = (at + offset) * 256
        data[start : start + len(block)] = block
    outcome = Outcome(session, tmp_path_factory.mktemp("any") / "tree", bytes(data))
    assert outcome.error is None or outcome.error.code in CODES


# -- more than anybody needs


def test_ten_gigabytes_of_zeros_are_stopped_early(session: Session, tmp_path: Path) -> None:
    piece = gzip.compress(bytes(64 << 20), compresslevel=9)
    header = tarfile.TarInfo("zeros")
    header.size = 10 << 30
    bomb = gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + piece * 160
    assert len(bomb) < 12 << 20
    outcome = Outcome(session, tmp_path / "tree", bomb)
    assert outcome.error is not None
    assert outcome.error.code == "image-too-large"
    assert outcome.error.hint
    assert sum(path.stat().st_blocks * 512 for path in outcome.place.iterdir()) < 1 << 30


def test_too_many_entries(session: Session, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(5001):
            add(tar, f"f{number % 7}")
    outcome = Outcome(session, tmp_path / "tree", gzip.compress(out.getvalue()))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.what) == ("image-too-large", "more than 5000 entries")


def test_too_much_of_the_processor(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()

    def pour() -> None:
        data = archive(*(entry("d", tarfile.DIRTYPE) for _ in range(500)))[: 500 * 512]
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(write_end, data)

    thread = threading.Thread(target=pour)
    thread.start()
    place = tmp_path / "tree"
    place.mkdir()
    tree = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Session(Limits(cpu_seconds=1, entries=1 << 40)) as session, pytest.raises(AgentosError) as caught:
            session.unpack(read_end, tree, kind="tar")
        assert caught.value.code == "image-too-large"
        assert "processor" in caught.value.what
    finally:
        os.close(read_end)
        thread.join()
        os.close(write_end)
        os.close(tree)


@pytest.mark.parametrize(
    ("limits", "code"), [({"idle_seconds": 0.5}, "source-stalled"), ({"wall_seconds": 0.5}, "import-timeout")]
)
def test_a_pipe_that_gives_nothing(tmp_path: Path, limits: dict[str, float], code: str) -> None:
    store = ImageStore(tmp_path / "state")
    read_end, write_end = os.pipe()
    try:
        with open(read_end, "rb", buffering=0) as stream, pytest.raises(AgentosError) as caught:
            store.import_("x", stream, limits=Limits(**limits))  # type: ignore[arg-type]
        assert caught.value.code == code
        assert os.listdir(store.path / "tmp") == []
    finally:
        os.close(write_end)


def test_endless_zeros_from_a_pipe(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "state")
    with open("/dev/zero", "rb", buffering=0) as stream, pytest.raises(AgentosError) as caught:
        store.import_("x", stream)
    assert caught.value.code in ("invalid-archive", "unsupported-source")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/random"])
def test_devices_are_no_sources(tmp_path: Path, path: str) -> None:
    with pytest.raises(AgentosError) as caught:
        ImageStore(tmp_path / "state").import_("x", Path(path))
    assert caught.value.code == "unsupported-source"


def test_a_session_outlives_what_an_archive_does_to_it(session: Session, tmp_path: Path) -> None:
    with pytest.raises(AgentosError, match="no task"):
        session.ask("no-such-task", b"")
    assert Outcome(session, tmp_path / "bad", b"nonsense" * 100).error is not None
    assert Outcome(session, tmp_path / "good", archive(entry("f"))).error is None
