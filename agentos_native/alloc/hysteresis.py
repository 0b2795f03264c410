"""Which weights are worth writing: as few as possible, without anybody's share being far from what is due.

Weights compare siblings only, so a factor that all weights of a parent have in common says nothing and needs no write.
But it moves all the time: a reservation's weight is ``floor / level`` and the level wanders with every demand; the unit
of a group is doubled or halved as a whole; under ``drf`` most members are told in CPUs per level. So each parent's
weights are first multiplied by the factor that leaves most of what its files hold within the band (`factors`). All
bands have the same width in logarithms, so that is the window of one width that holds most of the quotients held/due.

Then whoever is outside of the band is written: at once where a reservation depends on it, where its owner's own weight
is meant, or where it is far outside (`FAR`); others, if they are many, the farthest first and the rest a tick later.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agentos_native.alloc.siblings import COARSE, HIGHEST, LOWEST
from agentos_native.alloc.waterfill import Floats, Indices, Truths

RISE, FALL = 1.02, 0.95
"""The band: a weight is written when it leaves this range around what the file holds. A reservation is told at most 2 %
too little for it."""
FAR: Final = 1.15
"""Off by this factor a weight is never left for another tick. So much too heavy may siblings of a reservation be for
it, for a tick or two."""
PATIENCE: Final = 0.02
"""Of all weights: so many, or `FEW`, are written in a tick that could wait."""
FEW: Final = 8
WORTH: Final = 4
"""Writes that a factor must save in a parent: a few are simply written, so that small groups hold what is computed."""
LEAST: Final = 16
"""No factor makes a weight less than this one: whole numbers would not tell it well enough."""
LOOSE: Final = 0.25
"""How far down the weight of a member that has all it wants may be due before it is written: the kernel hands on what
it does not use. Should it want more, it has too much for a tick; so this is for parents in which nobody is promised
anything."""
WIDTH: Final = float(np.log(RISE / FALL))
"""Of the band, in logarithms."""
APART: Final = 64.0
"""Logarithms of quotients of weights are below 10: no window reaches the next parent."""


def outside(wanted: Indices, held: Indices, content: Truths) -> Truths:
    """Which are out of the band, or whose file's content is unknown, shape (n,)."""
    found: Truths = (wanted > held * RISE) | (wanted < held * np.where(content, LOOSE, FALL)) | (held < LOWEST)
    return found


def due(
    wanted: Indices, held: Indices, plain: Indices, parent: Indices, reserved: Truths, content: Truths
) -> tuple[Indices, Truths]:
    """What the files are to hold, and which of them are to be written now; both of shape (n,).

    A weight that is nothing but its owner's own (`plain`) does not wander with the load, so it is written exactly, as
    long as its parent's factor is 1.

    Args:
        wanted: as computed; what the kernel would not take is passed on as it is.
        held: as the files hold it; below the kernel's range where that is not known.
        plain: the owner's own weight.
        parent: ascending numbers: members with the same one are siblings.
        reserved: who is promised something: it is never told too little.
        content: who has all it wants: where nobody is promised anything, its weight only has to be high enough.
    """
    content = content & ~_beside(reserved, parent)
    own = (wanted == plain) & (wanted != held)
    found = outside(wanted, held, content) | own
    if np.count_nonzero(found) <= WORTH:
        return wanted, found
    factor = factors(wanted, held, found, parent)
    scaled = factor != 1.0
    target = np.where(scaled, times(wanted, factor, reserved), wanted)
    own &= ~scaled
    found = outside(target, held, content) | own
    return target, found & ~_patient(target, held, found & ~own, reserved)


def _beside(some: Truths, parent: Indices) -> Truths:
    """Who has one of `some` among its siblings, or is one, shape (n,)."""
    if not some.any():
        return some
    first = np.flatnonzero(np.append(True, parent[1:] != parent[:-1]))
    return np.repeat(np.logical_or.reduceat(some, first), np.diff(np.append(first, len(parent))))


def times(weights: Indices, factor: Floats, reserved: Truths) -> Indices:
    """Whole weights in the kernel's range, reserved ones rounded up; what is outside of it before stays as it is."""
    exact = weights * factor
    whole = np.where(reserved, np.ceil(exact - 1e-6), np.rint(exact))
    return np.where(_valid(weights), np.clip(whole, LOWEST, HIGHEST), weights).astype(np.int64)


def _valid(weights: Indices) -> Truths:
    valid: Truths = (weights >= LOWEST) & (weights <= HIGHEST)
    return valid


def factors(wanted: Indices, held: Indices, found: Truths, parent: Indices) -> Floats:
    """Of each member's parent, shape (n,): the factor on `wanted` that saves most writes; 1 where it saves but few.

    Args:
        found: who is to be written without a factor.
    """
    first = np.flatnonzero(np.append(True, parent[1:] != parent[:-1]))
    of = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(parent))))
    restless = np.add.reduceat(found, first, dtype=np.int64) > WORTH
    counted = restless[of] & _valid(held) & _valid(wanted) & (wanted >= COARSE)  # others are told too coarsely
    best = _best(np.log(held[counted] / wanted[counted]), of[counted], ~found[counted], len(first))
    usual = np.clip(wanted, LOWEST, HIGHEST)
    highest, lowest = np.maximum.reduceat(usual, first), np.minimum.reduceat(usual, first)
    # where whole numbers do not tell everybody well enough any more, all are told anew, once
    tellable = (best * highest <= HIGHEST) & ((best >= 1.0) | (best * lowest >= LEAST))
    return np.where(tellable, best, 1.0)[of]


def _best(quotient: Floats, of: Indices, kept: Truths, parents: int) -> Floats:
    """Each parent's factor, shape (parents,), by the logarithms of held/wanted.

    Args:
        of: the parent of each, ascending; kept: who needs no write without a factor.
    """
    best = np.ones(parents)
    if not len(quotient):
        return best
    order = np.lexsort((quotient, of))
    quotient = quotient[order]
    axis = quotient + APART * of  # one for all parents
    last = np.searchsorted(axis, axis + WIDTH, side="right") - 1
    many = last - np.arange(len(axis)) + 1
    begin = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
    most = np.zeros(parents, dtype=np.int64)
    most[of[begin]] = np.maximum.reduceat(many, begin)
    at = np.flatnonzero(many == most[of])
    at = at[np.searchsorted(of[at], of[begin])]  # each parent's first window that holds most
    to = last[at]
    usual = np.clip(quotient[(at + to) // 2], quotient[to] + np.log(FALL), quotient[at] + np.log(RISE))
    plainly = np.add.reduceat(kept, begin, dtype=np.int64)
    best[of[begin]] = np.where(most[of[begin]] > plainly + WORTH, np.exp(usual), 1.0)
    return best


def _patient(target: Indices, held: Indices, found: Truths, reserved: Truths) -> Truths:
    """Who of those `found` outside of the band can wait, since others are farther off; shape (n,)."""
    result = np.zeros(len(target), dtype=np.bool_)
    places = np.flatnonzero(found & _valid(held) & _valid(target))
    off = np.log(target[places] / held[places])
    can = (np.abs(off) < np.log(FAR)) & ~(reserved[places] & (off > 0))
    places, off = places[can], np.abs(off[can])
    allowed = max(FEW, int(PATIENCE * len(target)))
    if len(places) > allowed:
        result[places[np.argsort(off, kind="stable")[: len(places) - allowed]]] = True
    return result
