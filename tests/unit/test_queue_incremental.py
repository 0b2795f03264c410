"""The queue that keeps trees does what the rules say, one decision after the other, whatever happens in between."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc.ordered import Ordered
from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Account, Amounts, Room
from tests.unit.queuereference import Reference

NODE: Amounts = (1000, 1000, 8, inf, 100, 100)
TENANTS = ("a", "b", "c", "d", "e")
amount = st.sampled_from([0, 50, 200, 300, 400, 600])
asks = st.tuples(amount, amount, st.sampled_from([0, 0, 0, 1]), st.just(1), st.sampled_from([0, 0, 0, 70]), st.just(0))
accounts = st.builds(
    Account,
    st.sampled_from([1.0, 100.0, 300.0]),
    st.sampled_from([(0, 0, 0, 0, 0, 0), (300, 0, 0, 0, 0, 0), (100, 200, 0, 0, 0, 0)]),
    st.sampled_from([(inf,) * 6, (inf, 600, *[inf] * 4), (inf, inf, inf, 1, inf, inf), (500, 500, *[inf] * 4)]),
)
MOVES = {
    "ask": st.tuples(st.just("ask"), st.sampled_from(TENANTS), asks, st.sampled_from([1, 1, 1, 0, 2])),
    "end": st.tuples(st.just("end"), st.integers(0, 100)),
    "cancel": st.tuples(st.just("cancel"), st.integers(0, 100)),
    "other": st.tuples(st.just("other"), st.integers(0, 100), asks),
    "account": st.tuples(st.just("account"), st.sampled_from(TENANTS), accounts),
}
often = st.sampled_from(["ask"] * 10 + ["end"] * 3 + ["cancel", "other", "account"])
moves = st.lists(often.flatmap(MOVES.__getitem__), min_size=15, max_size=40)


class Twins:
    """The queue and its reference, over the same node."""

    def __init__(self, terms: dict[str, Account]) -> None:
        self.terms = dict(terms)
        self.queue, self.reference = FairQueue(), Reference()
        self.running: list[Entry] = []
        self._tickets = 0
        self._kept: Room | None = None

    def room(self, *, anew: bool) -> Room:
        """Rooms are made anew by the supervisor, and kept by others."""
        if anew or self._kept is None:
            self._kept = Room(NODE, dict(self.terms))
            for entry in self.running:
                self._kept.take(entry.tenant, entry.asked)
        return self._kept

    def put(self, entry: Entry) -> None:
        self.queue.put(entry)
        self.reference.waiting[entry.key] = entry

    def ask(self, tenant: str, asked: Amounts, tier: int) -> None:
        self._tickets += 1
        self.put(Entry(f"{tenant}{self._tickets}", tenant, tier, self._tickets, asked))

    def waiting(self, number: int) -> Entry | None:
        keys = list(self.reference.waiting)
        return self.reference.waiting[keys[number % len(keys)]] if keys else None

    def move(self, what: str, *how: object) -> bool:
        """Do it; whether the room is another one then."""
        if what == "ask":
            self.ask(*how)  # type: ignore[arg-type]
            return False
        if what == "account":
            self.terms[str(how[0])] = how[1]  # type: ignore[assignment]
            return True
        if what == "end":
            if self.running:
                del self.running[int(str(how[0])) % len(self.running)]
            return True
        entry = self.waiting(int(str(how[0])))
        if entry is None:
            return False
        if what == "cancel":
            self.queue.remove(entry.key)
            self.reference.remove(entry.key)
        else:
            self.put(Entry(entry.key, entry.tenant, entry.tier, entry.ticket, how[1]))  # type: ignore[arg-type]
        return False

    def agree(self, room: Room) -> None:
        """Serve all that may go on, and compare everything."""
        while True:
            expected = self.reference.choose(room)
            chosen = self.queue.choose(room)
            assert (chosen and chosen.key) == (expected and expected.key)
            if chosen is None:
                break
            room.take(chosen.tenant, chosen.asked)
            self.running.append(chosen)
        assert (self.queue.virtual, self.queue.finish) == (self.reference.virtual, self.reference.finish)
        known = self.reference.passed.items()
        assert self.queue.passed == {key: cost for key, cost in known if key in self.reference.waiting}
        reasons = self.reference.obstacles(room)
        assert {entry.key: self.queue.obstacle(entry.key) for entry in self.queue} == reasons
        self.agree_on_places(room)

    def agree_on_places(self, room: Room) -> None:
        places = self.reference.order(room)
        assert [entry.key for entry in self.queue.order(room)] == places
        seen: dict[str, int] = {}
        for number, key in enumerate(places, 1):
            tenant = self.reference.waiting[key].tenant
            seen[tenant] = seen.get(tenant, 0) + 1
            assert self.queue.place(key, room) == (number, seen[tenant])


@given(st.dictionaries(st.sampled_from(TENANTS), accounts, max_size=3), moves)
@settings(max_examples=80)
def test_the_same_starts_in_the_same_order_for_the_same_reasons(terms: dict[str, Account], steps: list[tuple]) -> None:  # type: ignore[type-arg]
    twins = Twins(terms)
    for step in steps:
        anew = twins.move(*step)
        twins.agree(twins.room(anew=anew))


@given(st.dictionaries(st.sampled_from(TENANTS), accounts, max_size=3), moves)
@settings(max_examples=60)
def test_many_moves_between_two_looks(terms: dict[str, Account], steps: list[tuple]) -> None:  # type: ignore[type-arg]
    twins = Twins(terms)
    for start in range(0, len(steps), 7):
        for step in steps[start : start + 7]:
            twins.move(*step)
        twins.agree_on_places(twins.room(anew=True))
        twins.agree(twins.room(anew=True))
        copied = twins.queue.copy()
        assert [entry.key for entry in copied.order(twins.room(anew=False))] == [
            entry.key for entry in twins.queue.order(twins.room(anew=False))
        ]


keys = st.tuples(st.sampled_from([0.0, 0.5, 1.5]), st.integers(0, 50), st.sampled_from("ab"))


@given(st.lists(st.tuples(keys, st.booleans(), st.tuples(st.integers(0, 9), st.integers(0, 9))), max_size=60), keys)
@settings(max_examples=200)
def test_the_tree_finds_what_a_walk_finds(
    steps: list[tuple[tuple[float, int, str], bool, tuple[int, int]]], after: tuple[float, int, str]
) -> None:
    tree: Ordered[int] = Ordered()
    plain: dict[tuple[float, int, str], tuple[int, int]] = {}
    for number, (key, goes, figures) in enumerate(steps):
        if key in plain:
            if goes:
                tree.remove(key)
                del plain[key]
        else:
            tree.insert(key, number, figures)
            plain[key] = figures
    assert bool(tree) == bool(plain)
    for bound in ((4, 9), (9, 4), (3, 3)):
        for beyond in (None, after):
            found = tree.first(beyond, lambda least: all(map(int.__le__, least, bound)))  # type: ignore[arg-type] # noqa: B023
            walked = [
                key
                for key in sorted(plain)
                if all(map(int.__le__, plain[key], bound)) and (beyond is None or key > beyond)
            ]
            assert (found and found[0]) == (walked[0] if walked else None)
