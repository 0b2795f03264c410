"""What comes out of a tar stream, and what never does: names, links, devices, damage, compression."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos_native.errors import AgentosError
from agentos_native.images.model import Limits
from agentos_native.images.unpack.archive import Entry, check_path, entries
from agentos_native.images.unpack.header import Header
from agentos_native.images.unpack.stream import HEADER_READ_MAX, Forward

LIMITS = Limits()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar(*members: tarfile.TarInfo, content: bytes = b"", form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of `members`; each file among them has `content`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info in members:
            if info.isreg():
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return out.getvalue()


def read(data: bytes, limits: Limits = LIMITS) -> list[tuple[Entry, bytes]]:
    """All entries with their content, as the unpacker takes them from a pipe."""
    descriptor = os.memfd_create("archive")
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        stream = Forward(descriptor, limits)
        return [(entry, b"".join(map(bytes, stream.blocks(entry.size)))) for entry in entries(stream, limits)]
    finally:
        os.close(descriptor)


def refused(data: bytes, limits: Limits = LIMITS) -> AgentosError:
    with pytest.raises(AgentosError) as caught:
        read(data, limits)
    return caught.value


def test_entries_carry_what_the_headers_say() -> None:
    data = tar(
        member("./", tarfile.DIRTYPE, mode=0o755),
        member("./etc/shadow", mode=0o4640, uid=0, gid=42, mtime=12.5),
        member("lib", tarfile.SYMTYPE, linkname="/usr/lib"),
        member("again", tarfile.LNKTYPE, linkname="./etc/shadow"),
        member("queue", tarfile.FIFOTYPE),
        content=b"root:*",
    )
    found = read(data)
    assert [(entry.path, entry.kind) for entry, _ in found] == [
        (b"", "directory"),
        (b"etc/shadow", "file"),
        (b"lib", "symlink"),
        (b"again", "hardlink"),
        (b"queue", "fifo"),
    ]
    shadow, content = found[1]
    assert (shadow.mode, shadow.uid, shadow.gid, shadow.mtime_ns, content) == (0o4640, 0, 42, 12_500_000_000, b"root:*")
    assert found[2][0].target == b"/usr/lib"
    assert found[3][0].target == b"etc/shadow"


@pytest.mark.parametrize(
    "pack",
    [
        bytes,
        gzip.compress,
        lzma.compress,
        bz2.compress,
        lambda data: bz2.compress(data[:700]) + bz2.compress(data[700:]),
        zstandard.ZstdCompressor().compress,
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    ],
    ids=["plain", "gzip", "xz", "bzip2", "bzip2-streams", "zstd", "gzip-members"],
)
def test_compressions(pack: Callable[[bytes], bytes]) -> None:
    content = os.urandom(3_000_000)
    ((entry, got),) = read(pack(tar(member("f"), content=content)))
    assert entry.size == len(content)
    assert got == content


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("/etc/passwd"), "absolute"),
        (member("a/../../etc/passwd"), '".."'),
        (member("..", tarfile.DIRTYPE), '".."'),
        (member("n" * 256), "more than 255"),
        (member("/".join(["d" * 200] * 21)), "more than 4095"),
        (member("/".join(["d"] * 257)), "more than 256 levels"),
        (member("dev/sda", tarfile.BLKTYPE, devmajor=8), "device"),
        (member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), "device"),
        (member("x", b"9"), "unknown type"),
        (member("h", tarfile.LNKTYPE, linkname="../../etc/shadow"), '".."'),
        (member("h", tarfile.LNKTYPE, linkname="/etc/shadow"), "absolute"),
        (member("h", tarfile.LNKTYPE, linkname="./"), "root"),
        (member("s", tarfile.SYMTYPE, linkname=""), "target"),
        (member("s", tarfile.SYMTYPE, linkname="x" * 5000), "target"),
        (member("su", mode=0o4755, uid=65536), "65535"),
        (member("su", mode=0o4755, gid=1_000_000), "65535"),
        (member(".", tarfile.SYMTYPE, linkname="/"), "root"),
        (member("nul", pax_headers={"path": "a\0b"}), "NUL"),
    ],
)
def test_hostile_entries_are_refused(info: tarfile.TarInfo, reason: str) -> None:
    error = refused(tar(info))
    assert error.code == "hostile-archive"
    assert reason in error.what
    assert error.where.startswith("entry ")


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    error = refused(tar(member("../\x1b[2J")))
    assert "\x1b" not in str(error)


def test_names_that_are_not_utf8_are_kept_as_they_are() -> None:
    info = member(os.fsdecode(b"caf\xe9"))
    ((entry, _),) = read(tar(info, form=tarfile.GNU_FORMAT))
    assert entry.path == b"caf\xe9"


def test_binary_attributes_are_kept_as_they_are() -> None:
    value = b"\xff\x00\xfe"
    info = member("f", pax_headers={"SCHILY.xattr.user.x": value.decode("utf-8", "surrogateescape")})
    descriptor, content = read(tar(info))[0]
    assert descriptor.xattrs == (("user.x", value),)
    assert content == b""


@pytest.mark.parametrize("cut", [1, 511, 600, 1024, 1500])
def test_a_truncated_archive_is_refused(cut: int) -> None:
    whole = tar(member("a"), member("b"), content=b"x" * 700)
    end = whole.rindex(b"x") + 1
    data = whole[: end + 512 - end % 512 - cut]
    assert refused(data).code == "invalid-archive"


def test_an_archive_without_its_end_is_refused() -> None:
    whole = tar(member("a"), member("b"), content=b"x" * 512)
    assert refused(whole[: 4 * 512]).code == "invalid-archive"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress], ids=["gzip", "xz", "bzip2"])
def test_truncated_compression_is_refused(pack: Callable[[bytes], bytes]) -> None:
    data = pack(tar(member("a"), content=os.urandom(5000)))
    assert refused(data[:-9]).code == "invalid-archive"


def test_a_flipped_bit_in_gzip_is_refused() -> None:
    data = bytearray(gzip.compress(tar(member("a"), content=os.urandom(5000))))
    data[3000] ^= 4
    assert refused(bytes(data)).code == "invalid-archive"


def test_a_flipped_bit_in_a_header_is_refused() -> None:
    data = bytearray(tar(member("a"), member("b"), content=b"x" * 512))
    data[1024 + 3] ^= 4
    assert refused(bytes(data)).code == "invalid-archive"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid-archive"),
        (b"hello\n" * 400, "invalid-archive"),
        (b"BZh91AY", "invalid-archive"),
        (b"PK\x03\x04", "unsupported-archive"),
    ],
)
def test_what_is_not_a_tar(data: bytes, code: str) -> None:
    assert refused(data).code == code


def test_a_bomb_is_refused_early() -> None:
    limits = Limits(ratio=100, ratio_from=1 << 20)
    data = gzip.compress(tar(member("zeros"), content=bytes(64 << 20)))
    error = refused(data, limits)
    assert error.code == "image-too-large"
    assert "compressed" in error.what


def test_a_header_that_wants_memory_is_refused() -> None:
    info = member("x", tarfile.GNUTYPE_LONGNAME)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    info.size = HEADER_READ_MAX + 1
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    error = refused(bytes(block) + bytes(HEADER_READ_MAX * 2))
    assert error.code == "invalid-archive"


def test_sparse_parts_must_lie_in_order_within_the_file() -> None:
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "4096"}
    good = member("f", pax_headers={**headers, "GNU.sparse.map": "0,2,4094,2"})
    bad = member("f", pax_headers={**headers, "GNU.sparse.map": "0,2,1,2"})
    outside = member("f", pax_headers={**headers, "GNU.sparse.map": "0,2,8000,2"})
    stream_of = os.memfd_create("archive")
    try:
        os.write(stream_of, tar(good, content=b"abcd"))
        os.lseek(stream_of, 0, os.SEEK_SET)
        first = next(entries(Forward(stream_of, LIMITS), LIMITS))
    finally:
        os.close(stream_of)
    assert (first.size, first.segments) == (4096, ((0, 2), (4094, 2)))
    assert "overlap" in refused(tar(bad, content=b"abcd")).what
    assert "overlap" in refused(tar(outside, content=b"abcd")).what


@given(st.binary(max_size=60))
def test_a_checked_path_stays_inside(raw: bytes) -> None:
    try:
        path = check_path(raw, LIMITS)
    except AgentosError:
        return
    assert not path.startswith(b"/")
    assert b"\0" not in path
    assert not {b"..", b".", b""} & set(path.split(b"/") if path else [])


_SAMPLE = tar(
    member("d", tarfile.DIRTYPE),
    member("d/" + "long" * 40),
    member("l", tarfile.SYMTYPE, linkname="d"),
    member("x", pax_headers={"SCHILY.xattr.user.a": "b", "mtime": "1.5"}),
    content=b"some content",
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(_SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.booleans()
)
def test_damage_gives_entries_or_our_own_error(changes: list[tuple[int, int]], repair: bool) -> None:
    data = bytearray(_SAMPLE)
    for position, value in changes:
        data[position] = value
    if repair:  # with right checksums the damage reaches the parsers behind them
        for start in range(0, len(data), 512):
            block = data[start : start + 512]
            if block[257:262] == b"ustar":
                total = sum(block[:148]) + sum(block[156:]) + 256
                data[start + 148 : start + 156] = b"%06o\0 " % total
    try:
        read(bytes(data))
    except AgentosError as error:
        assert error.code in {"hostile-archive", "invalid-archive", "image-too-large", "unsupported-archive"}


_NUMBERS = st.integers(0, 0o777_7777)


@settings(max_examples=150)
@given(
    st.builds(
        member,
        st.text(min_size=1, max_size=180).filter(lambda name: "\0" not in name),
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
        mode=_NUMBERS,
        uid=_NUMBERS,
        gid=_NUMBERS,
        size=st.integers(0, 1 << 40),
        mtime=st.integers(0, 1 << 40),
        linkname=st.text(max_size=100).filter(lambda name: "\0" not in name),
    ),
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=2),
    st.booleans(),
)
def test_headers_are_read_as_tarfile_reads_them(
    info: tarfile.TarInfo, damage: list[tuple[int, int]], mended: bool
) -> None:
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
    for position, value in damage:
        block[position] = value
    if mended:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    try:
        expected = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        with pytest.raises(type(error)):
            Header.frombuf(block, "utf-8", "surrogateescape")
        return
    found = Header.frombuf(block, "utf-8", "surrogateescape")
    for field in ("name", "mode", "uid", "gid", "size", "mtime", "type", "linkname", "uname", "gname"):
        assert getattr(found, field) == getattr(expected, field), field
