"""Start-time fair queueing of starts: the bounds of the theory, and who may pass whom when something does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos_native.alloc.queueing import Entry, FairQueue
from agentos_native.alloc.room import Account, Amounts, Obstacle, Room

NODE: Amounts = (1000, 1000, 64, inf)
TENANTS = ("a", "b", "c", "d")
FREE = 1e-9


def ask(cpu: float = 0, memory: float = 0) -> Amounts:
    return cpu, memory, 0, 1


class Node:
    """A node whose agents end when they are told to.

    `served` is what was let in, in order; `let_past`, the keys of those that the patience of others let past them.
    """

    def __init__(self, accounts: dict[str, Account] | None = None) -> None:
        self.accounts = accounts or {}
        self.queue = FairQueue()
        self.running: list[tuple[str, Amounts]] = []
        self.served: list[Entry] = []
        self.let_past: set[str] = set()
        self._tickets = iter(range(1, 10**6))

    def room(self) -> Room:
        room = Room(NODE, self.accounts)
        for tenant, asked in self.running:
            room.take(tenant, asked)
        return room

    def weight(self, tenant: str) -> float:
        return self.accounts.get(tenant, Account()).weight

    def cost(self, entry: Entry) -> float:
        return self.room().cost(entry.asked) / self.weight(entry.tenant)

    def ask(self, tenant: str, asked: Amounts, tier: int = 2) -> Entry:
        ticket = next(self._tickets)
        entry = Entry(f"{tenant}{ticket}", tenant, tier, ticket, asked)
        self.queue.put(entry)
        return entry

    def serve(self) -> list[Entry]:
        """Let in whoever may go on."""
        let_in = []
        room = self.room()
        while True:
            passed = dict(self.queue.passed)
            if (entry := self.queue.choose(room)) is None:
                break
            if any(cost > passed.get(key, 0.0) for key, cost in self.queue.passed.items()):
                self.let_past.add(entry.key)
            room.take(entry.tenant, entry.asked)
            self.running.append((entry.tenant, entry.asked))
            let_in.append(entry)
        self.served += let_in
        return let_in

    def end(self, number: int) -> None:
        """One of the running agents ends."""
        del self.running[number % len(self.running)]

    def reason(self, entry: Entry) -> Obstacle:
        """Why it waits."""
        found = self.queue.obstacle(entry.key)
        assert found is not None
        return found

    def reasons(self) -> list[Obstacle | None]:
        """Why they all do."""
        return [self.queue.obstacle(entry.key) for entry in self.queue]

    def waiting(self) -> Counter[str]:
        return Counter(entry.tenant for entry in self.queue)


def names(entries: list[Entry]) -> list[str]:
    return [entry.key for entry in entries]


weights = st.sampled_from([1.0, 50.0, 100.0, 300.0])
sizes = st.integers(1, 500)
requests = st.builds(ask, st.integers(0, 500), st.integers(0, 500))


@st.composite
def floods(draw: st.DrawFn) -> tuple[dict[str, Account], list[tuple[str, Amounts]]]:
    accounts = {tenant: Account(draw(weights)) for tenant in TENANTS}
    wanted = draw(st.lists(st.tuples(st.sampled_from(TENANTS), requests), min_size=4, max_size=60))
    return accounts, wanted


def backlogged(history: list[tuple[Entry, Counter[str]]], one: str, other: str) -> Iterator[list[Entry]]:
    """The longest stretches of service during which both have something that waits."""
    stretch: list[Entry] = []
    for entry, left in history:
        stretch.append(entry)
        if not (left[one] and left[other]):
            yield stretch
            stretch = []
    yield stretch


@given(floods())
@settings(max_examples=150)
def test_service_is_shared_by_weight_within_the_bound_of_the_theory(
    flood: tuple[dict[str, Account], list[tuple[str, Amounts]]],
) -> None:
    """Goyal, Vin, Cheng 1996, theorem 1, for every interval in which two tenants both wait."""
    accounts, wanted = flood
    node = Node(accounts)
    for tenant, asked in wanted:
        node.ask(tenant, asked)
    history: list[tuple[Entry, Counter[str]]] = []
    while len(node.queue):
        entry = node.queue.choose(Room(NODE, accounts))  # a server that has room for the next one, whenever it is ready
        assert entry is not None
        history.append((entry, node.waiting()))
    assert sorted(entry.ticket for entry, _ in history) == list(range(1, len(wanted) + 1))
    largest = {tenant: max([node.cost(e) for e, _ in history if e.tenant == tenant], default=0) for tenant in TENANTS}
    for one, other in combinations(TENANTS, 2):
        for stretch in backlogged(history, one, other):
            for first in range(len(stretch)):
                lead = 0.0
                for entry in stretch[first:-1]:  # during the last service one of them no longer waits
                    lead += node.cost(entry) * ((entry.tenant == one) - (entry.tenant == other))
                    assert abs(lead) <= largest[one] + largest[other] + FREE


@given(floods(), sizes, st.lists(st.integers(0, 10**6), min_size=200, max_size=200))
@settings(max_examples=150)
def test_who_comes_late_and_runs_nothing_waits_for_one_start_of_each_other_tenant(
    flood: tuple[dict[str, Account], list[tuple[str, Amounts]]], size: int, ends: list[int]
) -> None:
    """Whatever the sizes, the weights and the order in which agents end; beside what the patience of those lets past
    that wait, which is less than what each costs, and one start more."""
    accounts, wanted = flood
    node = Node({**accounts, "late": Account(1.0)})
    early, then = wanted[::2], wanted[1::2]
    for tenant, asked in early:
        node.ask(tenant, asked)
    node.serve()
    for end in ends[:5]:
        if node.running:
            node.end(end)
            node.serve()
    late = node.ask("late", ask(size, size))
    before = len(node.served)
    others = iter(then)
    for end in ends:
        node.serve()
        if late in node.served:
            break
        for tenant, asked in [next(others, ("a", ask(1)))]:
            node.ask(tenant, asked)  # they go on flooding meanwhile
        if node.running:
            node.end(end)
    assert late in node.served
    ahead = node.served[before : node.served.index(late)]
    in_turn = [entry for entry in ahead if entry.key not in node.let_past]
    delaying = Counter(entry.tenant for entry in in_turn if entry.asked[0] or entry.asked[1])
    assert all(number <= 1 for number in delaying.values()), delaying


@given(floods(), st.lists(st.integers(0, 10**6), max_size=100))
@settings(max_examples=150)
def test_what_goes_past_one_that_waits_costs_less_than_itself_and_one_start_more(
    flood: tuple[dict[str, Account], list[tuple[str, Amounts]]], ends: list[int]
) -> None:
    accounts, wanted = flood
    node = Node(accounts)
    room = Room(NODE, accounts)
    largest = max(room.cost(asked) for _, asked in wanted)
    moves = iter(ends)
    for tenant, asked in wanted:
        node.ask(tenant, asked)
        node.serve()
        if node.running and (move := next(moves, 0)) % 2:
            node.end(move)
        for entry in node.queue:
            assert node.queue.passed.get(entry.key, 0.0) < room.cost(entry.asked) + largest


@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.lists(st.integers(1, 100), max_size=60),
    st.lists(st.integers(0, 10**6), min_size=150, max_size=150),
)
@settings(max_examples=150)
def test_a_small_start_waits_for_one_holder_however_many_tenants_wait_ahead_of_it(
    tenants: int, size: int, flood: list[int], ends: list[int]
) -> None:
    """It fits: either it goes on at once, or once the one holder that has been passed enough is served."""
    node = Node()
    for _ in range(4):
        node.ask("old", ask(200))
    node.serve()
    large = {node.ask(f"large{n}", ask(201 + 7 * n, 201)).key for n in range(tenants)}
    for asked in flood:  # they use up the patience of the first
        node.ask("flood", ask(asked))
        node.serve()
        if len(node.running) > 4:
            node.end(len(node.running) - 1)
    small = node.ask("small", ask(min(size, 200)))
    before = len(node.served)
    for end in ends:
        node.serve()
        served = node.served[before:]
        if small in served:
            break
        if node.room().obstacle("small", small.asked) is None:
            assert not [entry for entry in served if entry.key in large]
        node.end(end)
    assert small in node.served


@given(floods(), st.lists(st.integers(0, 10**6), max_size=60), st.integers(0, 1000), st.integers(0, 5))
@settings(max_examples=150)
def test_the_node_is_never_promised_twice_and_nobody_waits_beside_an_empty_node(
    flood: tuple[dict[str, Account], list[tuple[str, Amounts]]], ends: list[int], floor: int, agents: int
) -> None:
    accounts, wanted = flood
    accounts["a"] = Account(100.0, (floor, 0, 0, 0), (inf, 600, inf, inf))
    accounts["b"] = Account(100.0, (0, 0, 0, 0), (inf, inf, inf, agents))
    node = Node(accounts)
    moves = iter(ends)
    for tenant, asked in wanted:
        if node.room().obstacle(tenant, asked) and Room(NODE, accounts).obstacle(tenant, asked):
            continue  # could never fit: refused at the door
        node.ask(tenant, asked)
        node.serve()
        if node.running and (move := next(moves, 0)) % 2:
            node.end(move)
        promised = node.room().promised
        assert promised[0] <= NODE[0]
        assert promised[1] <= NODE[1]
        assert sum(memory for tenant, (_, memory, _, _) in node.running if tenant == "a") <= 600
        assert sum(tenant == "b" for tenant, _ in node.running) <= agents
    while len(node.queue):
        node.running.clear()
        assert node.serve(), node.reasons()


def test_a_flood_delays_only_its_own_tenant() -> None:
    node = Node()
    for _ in range(30):
        node.ask("a", ask(500))
    assert len(node.serve()) == 2
    late = node.ask("b", ask(500))
    node.end(0)
    assert node.serve() == [late]


def test_shares_follow_weights() -> None:
    node = Node({"a": Account(300.0), "b": Account(100.0)})
    for _ in range(40):
        node.ask("a", ask(1000))
        node.ask("b", ask(1000))
    while len(node.served) < 40:
        node.serve()
        node.end(0)
    assert Counter(entry.tenant for entry in node.served) == {"a": 30, "b": 10}


def test_inside_a_tenant_priority_goes_first_then_arrival() -> None:
    node = Node()
    node.ask("a", ask(1000))
    node.serve()
    low, normal, high, later = (node.ask("a", ask(1000), tier) for tier in (3, 2, 1, 2))
    order = node.queue.order(node.room())
    assert order == [high, normal, later, low]
    for entry in order:
        node.end(0)
        assert node.serve() == [entry]


def test_what_only_its_own_tenants_limit_blocks_holds_back_nobody_else() -> None:
    node = Node({"a": Account(limit=(inf, inf, inf, 1))})
    node.ask("a", ask(100))
    node.serve()
    first, second = node.ask("a", ask(100)), node.ask("a", ask(0))
    other = node.ask("b", ask(900))
    assert node.serve() == [other]
    reason = node.reason(first)
    assert (reason.scope, reason.resource, reason.free) == ("tenant", "agents", 0)
    assert second in node.queue


def test_a_waiting_start_is_not_starved_by_small_ones_of_those_who_have_as_much() -> None:
    node = Node()
    node.ask("c", ask(500))
    node.serve()
    big = node.ask("a", ask(600))
    small = [node.ask("b", ask(64)) for _ in range(40)]
    gone = len(node.serve())
    assert gone == 7  # as many as there is room for; they cost 0.448, the one that waits 0.6
    for _ in range(10):
        node.end(len(node.running) - 1)
        gone += len(node.serve())
    assert gone == 10
    assert node.reason(small[-1]).ahead
    let_in: list[Entry] = []
    while not let_in:
        node.end(0)
        let_in = node.serve()
    assert let_in[0] is big


def test_who_has_more_than_the_holder_would_have_is_held_back_at_once() -> None:
    node = Node()
    for _ in range(2):
        node.ask("a", ask(400))
    node.serve()
    node.ask("b", ask(500))
    small = node.ask("a", ask(50))
    assert node.serve() == []  # 200 are free: they are kept for b, which runs nothing
    assert node.reason(small).ahead


def test_many_equal_tenants_that_wait_for_much_do_not_keep_out_a_small_start() -> None:
    node = Node()
    node.ask("old", ask(600))
    node.serve()
    for number in range(100):
        node.ask(f"large{number}", ask(600, 300))
    beside, small = node.ask("x", ask(0, 600)), node.ask("y", ask(100, 100))
    assert node.serve() == [beside, small]  # of the memory, only what the first large one asks for is set aside


def test_a_waiting_start_does_not_stand_in_the_way_of_those_who_have_less() -> None:
    node = Node()
    node.ask("a", ask(600))
    node.serve()
    node.ask("a", ask(600))
    small = node.ask("b", ask(50))
    assert node.serve() == [small]


def test_what_needs_nothing_of_what_is_short_goes_on() -> None:
    node = Node()
    node.ask("a", ask(900, 100))
    node.serve()
    big = node.ask("a", ask(500, 300))
    beside, greedy, own = node.ask("a", ask(0, 600)), node.ask("a", ask(0, 400)), node.ask("a", ask(1, 0))
    assert node.serve() == [beside]  # 300 of the 900 are set aside for the one that waits for CPU
    node.end(0)
    assert node.serve() == [big, own]
    assert greedy in node.queue


def test_a_tenants_own_reservation_is_there_for_it_whoever_waits() -> None:
    node = Node({"b": Account(floor=(300, 0, 0, 0))})
    node.ask("a", ask(700))
    node.serve()
    node.ask("a", ask(100))
    assert node.serve() == []
    within = node.ask("b", ask(300))
    assert node.serve() == [within]


def test_slots_are_waited_for_too() -> None:
    room = Room(NODE, {})
    room.take("", (0, 0, 64, 0))
    obstacle = room.obstacle("a", (0, 0, 1, 1))
    assert obstacle is not None
    assert (obstacle.resource, obstacle.scope, obstacle.free) == ("slots", "node", 0)
    assert room.obstacle("a", (0, 0, 0, 1)) is None


def test_cancelling_costs_nothing_and_an_empty_queue_forgets() -> None:
    node = Node()
    node.ask("a", ask(1000))
    node.serve()
    assert (node.queue.virtual, node.queue.finish) == (0.0, {})
    entries = [node.ask("a", ask(1000)) for _ in range(3)]
    for entry in entries:
        assert node.queue.remove(entry.key)
        assert not node.queue.remove(entry.key)
    assert len(node.queue) == 0


def test_other_figures_keep_the_place() -> None:
    node = Node()
    node.ask("a", ask(1000))
    node.serve()
    first, second = node.ask("a", ask(900)), node.ask("a", ask(100))
    node.queue.put(Entry(first.key, "a", 2, first.ticket, ask(200)))
    assert names(node.queue.order(node.room())) == [first.key, second.key]
    node.end(0)
    assert names(node.serve()) == [first.key, second.key]


@given(floods())
@settings(max_examples=100)
def test_places_are_the_order_of_service_when_everything_fits(
    flood: tuple[dict[str, Account], list[tuple[str, Amounts]]],
) -> None:
    accounts, wanted = flood
    node = Node(accounts)
    for tenant, asked in wanted:
        node.ask(tenant, asked)
    room = Room(NODE, accounts)
    places = names(node.queue.order(room))
    served = []
    while entry := node.queue.choose(room):
        served.append(entry.key)
    assert served == places


@pytest.mark.parametrize("asked", [ask(0, 0), ask(1000, 0), ask(0, 1000)])
def test_the_cost_is_the_dominant_share(asked: Amounts) -> None:
    assert Room(NODE, {}).cost(asked) == max(asked[0] / 1000, asked[1] / 1000, 1 / 64)


def test_who_needs_nothing_of_what_is_overdrawn_goes_on() -> None:
    node = Node()
    node.ask("a", ask(900))
    node.serve()
    node.ask("a", ask(300))
    node.accounts["b"] = Account(floor=(300, 0, 0, 0))  # as after a restart on a smaller machine
    small = node.ask("c", ask(0, 300))
    assert node.serve() == [small]
