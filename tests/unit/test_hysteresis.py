"""Which weights are written: few, and never so few that somebody's share is far from what is due."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos_native.alloc import hysteresis
from agentos_native.alloc.hysteresis import FALL, FAR, LOOSE, RISE, WORTH, due
from agentos_native.alloc.siblings import HIGHEST, LOWEST
from agentos_native.alloc.waterfill import Floats, Indices, Truths, waterfill

NONE: Indices = np.zeros(0, dtype=np.int64)


@st.composite
def siblings(draw: st.DrawFn) -> tuple[Indices, Indices, Indices, Indices, Truths, Truths]:
    """What `due` takes: several parents, files in any state, some of them a multiple of what is wanted."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = sum(sizes)
    parent = np.repeat(np.arange(len(sizes)), sizes)
    wanted = np.clip(random.lognormal(5, draw(st.sampled_from([0.3, 1.5, 3.0])), count), 1, 10_000).astype(np.int64)
    scale = random.choice([0.25, 1.0, 1.7, 16.0], len(sizes))[parent]
    drift = np.exp(random.normal(0, draw(st.sampled_from([0.01, 0.1, 1.0])), count))
    held = np.clip(np.rint(wanted * scale * drift), 1, 10_000).astype(np.int64)
    held[random.random(count) < draw(st.sampled_from([0.0, 0.1]))] = draw(st.sampled_from([-1, 0]))
    plain = np.where(random.random(count) < 0.5, wanted, 100)
    return wanted, held, plain, parent, random.random(count) < 0.3, random.random(count) < 0.3


def written(given: tuple[Indices, Indices, Indices, Indices, Truths, Truths]) -> tuple[Indices, Indices, Truths]:
    """What the files are to hold and do hold after a tick, and what was written."""
    target, now = due(*given)
    return target, np.where(now, target, given[1]), now


@given(siblings())
def test_after_a_tick_everybody_is_near_a_common_multiple_of_what_is_due(
    given: tuple[Indices, Indices, Indices, Indices, Truths, Truths],
) -> None:
    wanted, _, _, parent, reserved, content = given
    target, now, _ = written(given)
    assert ((target >= LOWEST) & (target <= HIGHEST)).all()
    for number in np.unique(parent):
        mine = parent == number
        # whole numbers say a common factor within half a unit, or a whole one where they are rounded up
        least, most = np.max((target[mine] - 1) / wanted[mine]), np.min((target[mine] + 0.5001) / wanted[mine])
        assert least < most or (target[mine] == wanted[mine]).all()
    ratio = now / target
    loose = content & ~np.isin(parent, parent[reserved])
    assert (ratio[~loose] < FAR * 1.0001).all()
    assert (ratio < 1 / LOOSE * 1.0001).all()
    assert (ratio > 1 / FAR / 1.0001).all()
    assert (ratio[reserved] >= 1 / RISE / 1.0001).all()


@given(siblings())
def test_what_stays_wanted_is_arrived_at(given: tuple[Indices, Indices, Indices, Indices, Truths, Truths]) -> None:
    wanted, held, plain, parent, reserved, content = given
    for _ in range(4 + len(wanted)):
        target, held, now = written((wanted, held, plain, parent, reserved, content))
    assert not now.any()
    assert (target[~content] <= held[~content] * RISE).all()
    assert (target[~content] >= held[~content] * FALL).all()


@given(siblings())
def test_shares_are_as_near_as_the_band_is_wide(
    given: tuple[Indices, Indices, Indices, Indices, Truths, Truths],
) -> None:
    """By a kernel that fills unlimited demand by weight: `FAR` in one's own weight and at most as much in all others'.
    The factor's rounding is not counted: it is that of `quantise`."""
    wanted, held, plain, parent, reserved, _ = given
    target, now, _ = written((wanted, held, plain, parent, reserved, np.zeros(len(wanted), dtype=np.bool_)))
    starts = np.append(np.searchsorted(parent, np.unique(parent)), len(parent))

    def filled(weights: Indices) -> Floats:
        nothing, limit = np.zeros(len(weights)), np.full(len(weights), 0.5)
        budgets = np.ones(len(starts) - 1)
        return waterfill(weights.astype(float), nothing, limit, starts, budgets, 0 * budgets)[0]

    off = filled(now) / filled(target)
    assert (off < FAR**2 * 1.0001).all()
    assert (off > FAR**-2 / 1.0001).all()


@pytest.mark.parametrize("factor", [1 / 16, 0.5, 0.93, 1.03, 1.5, 2.0, 16.0])
def test_a_common_factor_is_not_written(factor: float) -> None:
    weights = np.arange(512, 624).astype(np.int64)
    held = np.rint(weights * factor).astype(np.int64)
    nobody = np.zeros(len(weights), dtype=np.bool_)
    _, now = due(weights, held, np.full(len(weights), 100), np.zeros(len(weights), dtype=np.int64), nobody, nobody)
    assert not now.any()


def test_the_odd_one_is_written_in_the_scale_of_the_others() -> None:
    weights = np.full(50, 200)
    held = np.full(50, 300)
    held[7] = 500
    nobody = np.zeros(50, dtype=np.bool_)
    target, now = due(weights, held, np.full(50, 100), np.zeros(50, dtype=np.int64), nobody, nobody)
    assert np.flatnonzero(now).tolist() == [7]
    assert 300 * 0.95 <= target[7] <= 300 * 1.02


def test_few_are_written_as_they_are() -> None:
    """A small group's files hold what is computed, and an owner's own weight to the unit."""
    wanted, held = np.array([101, 150, 80]), np.array([100, 300, 160])
    nobody = np.zeros(3, dtype=np.bool_)
    target, now = due(wanted, held, np.array([101, 100, 100]), np.zeros(3, dtype=np.int64), nobody, nobody)
    assert target.tolist() == wanted.tolist()
    assert now.all()
    assert len(wanted) < WORTH


def test_many_small_steps_wait_for_each_other_and_reservations_do_not() -> None:
    count = 1000
    random = np.random.default_rng(3)
    held = np.full(count, 1000)
    step = np.where(np.arange(count) < 400, random.choice([-1, 1], count) * random.uniform(0.06, 0.1, count), 0.0)
    wanted = np.rint(1000 * np.exp(step)).astype(np.int64)
    reserved, content = np.arange(count) % 10 == 0, np.zeros(count, dtype=np.bool_)
    plain, parent = np.full(count, 100), np.zeros(count, dtype=np.int64)
    target, now = due(wanted, held, plain, parent, reserved, content)
    rising = reserved & (target > held * RISE)
    assert now[rising].all()
    late = hysteresis.outside(target, held, content) & ~now
    assert np.count_nonzero(now & ~rising) == int(hysteresis.PATIENCE * count)
    off = np.abs(np.log(target / held))
    assert off[late].max() <= off[now & ~rising].min()  # the farthest go first


def test_who_has_all_it_wants_may_be_too_heavy_but_not_beside_a_reservation() -> None:
    wanted, held, plain = np.full(4, 100), np.array([100, 300, 100, 300]), np.full(4, 200)
    parent, content = np.array([0, 0, 1, 1]), np.array([False, True, False, True])
    target, now = due(wanted, held, plain, parent, np.array([True, False, False, False]), content)
    assert (target.tolist(), now.tolist()) == ([100] * 4, [False, True, False, False])


@pytest.mark.parametrize("computed", [np.nan, np.inf, -np.inf])
def test_what_is_no_weight_stays_none(computed: float) -> None:
    """`WeightFiles.write` refuses it then; nobody else's weight changes for it."""
    wanted = np.full(20, 200.0)
    wanted[3] = computed
    with np.errstate(invalid="ignore"):
        whole = wanted.astype(np.int64)
    nobody, nothing = np.zeros(20, dtype=np.bool_), np.zeros(20, dtype=np.int64)
    target, now = due(whole, np.full(20, 300), np.full(20, 100), nothing, nobody, nobody)
    assert now[3]
    assert not LOWEST <= target[3] <= HIGHEST
    assert np.flatnonzero(now).tolist() == [3]


def test_nobody() -> None:
    nobody = np.zeros(0, dtype=np.bool_)
    target, now = due(NONE, NONE, NONE, NONE, nobody, nobody)
    assert len(target) == len(now) == 0
