"""What supervisors of one machine share is claimed once, survives a crash, and is not kept by the dead for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentos_native.errors import AgentosError
from agentos_native.supervisor import admission
from agentos_native.supervisor.claims import Owner, claim_block, claim_node
from agentos_native.supervisor.moving import shift_owners


def owner(tmp_path: Path, name: str, node: str = "", *, processes: bool = False) -> Owner:
    """A supervisor with a state and a "cgroup", which has processes or not."""
    (tmp_path / name / "group" / "leaf").mkdir(parents=True, exist_ok=True)
    (tmp_path / name / "registry.db").touch()
    (tmp_path / name / "group" / "leaf" / "cgroup.procs").write_text("17\n" if processes else "")
    return Owner(node or name, str(tmp_path / name), str(tmp_path / name / "group"))


def test_each_supervisor_has_a_block_of_its_own_and_gets_it_back(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    a, b, c = (owner(tmp_path, name) for name in "abc")
    first, second = claim_block(run, a), claim_block(run, b)
    assert (first.number, second.number) == (0, 1)
    os.close(first.fd)
    third = claim_block(run, c)
    assert third.number == 2  # a may come back
    again = claim_block(run, a, preferred=0)
    assert again.number == 0
    for claim in (second, third, again):
        os.close(claim.fd)
    gone = owner(tmp_path, "gone")
    Path(gone.state, "registry.db").unlink()
    assert gone.is_gone()


def test_the_block_of_a_state_that_is_gone_is_used_again(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    os.close(claim_block(run, Owner("gone", str(tmp_path / "gone"))).fd)
    claim = claim_block(run, owner(tmp_path, "b"))
    assert claim.number == 0
    os.close(claim.fd)


def test_in_need_the_dead_lose_their_blocks_and_the_living_do_not(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    claims = [claim_block(run, owner(tmp_path, f"s{n}", processes=n != 5)) for n in range(admission.BLOCKS)]
    new = owner(tmp_path, "new")
    with pytest.raises(AgentosError) as caught:
        claim_block(run, new)
    assert caught.value.code == "no-block"
    assert str(tmp_path / "s5") in caught.value.hint
    for claim in claims:
        os.close(claim.fd)  # all supervisors die; the agents of all but one live on
    taken = claim_block(run, new)
    assert taken.number == 5
    with pytest.raises(AgentosError, match="no-block"):
        claim_block(run, owner(tmp_path, "s5"), preferred=5)
    back = claim_block(run, owner(tmp_path, "s3", processes=True), preferred=3)
    assert back.number == 3
    os.close(taken.fd)
    os.close(back.fd)


def test_a_block_number_that_does_not_exist_any_more_is_no_harm(tmp_path: Path) -> None:
    claim = claim_block(str(tmp_path / "run"), owner(tmp_path, "a"), preferred=10_000)
    assert claim.number == 0
    os.close(claim.fd)


def test_a_node_name_is_used_once_at_a_time(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    here, there = owner(tmp_path, "a", "main", processes=True), owner(tmp_path, "b", "main")
    first = claim_node(run, here)
    for _ in range(2):
        with pytest.raises(AgentosError) as caught:
            claim_node(run, there)
        assert caught.value.code == "node-in-use"
        assert here.state in caught.value.what
        if first >= 0:
            os.close(first)  # the second time its supervisor is dead, but not its agents
            first = -1
    os.close(claim_node(run, here))
    owner(tmp_path, "a", "main")  # now they are
    os.close(claim_node(run, there))


def test_a_damaged_claim_is_nobodys(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "blocks").mkdir(parents=True)
    (run / "blocks" / "0").write_bytes(b"\xff{")
    claim = claim_block(str(run), owner(tmp_path, "a"))
    assert claim.number == 0
    os.close(claim.fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_files_move_to_their_new_ids(tmp_path: Path) -> None:
    old, new = admission.id_base(1, 7), admission.id_base(2, 7)
    upper = tmp_path / "upper"
    (upper / "d" / "e").mkdir(parents=True)
    (upper / "d" / "file").write_text("x")
    (upper / "d" / "tool").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("x")
    (upper / "link").symlink_to(outside)
    for path in (upper, upper / "d", upper / "d" / "e", upper / "d" / "file", upper / "link"):
        os.chown(path, old + 5, old + 6, follow_symlinks=False)
    os.chown(upper / "d" / "tool", old, old)
    os.chmod(upper / "d" / "tool", 0o4755)
    assert shift_owners(str(tmp_path), old, new) == 6
    for path in (upper, upper / "d" / "e", upper / "d" / "file", upper / "link"):
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (new + 5, new + 6)
    assert (upper / "d" / "tool").stat().st_mode & 0o7777 == 0o4755
    assert outside.stat().st_uid == 0
    assert shift_owners(str(tmp_path), old, new) == 0
