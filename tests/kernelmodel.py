"""A fluid model of the kernel's group scheduler: siblings divide by weight, and what one leaves goes to the others.

It is the kernel's promise without its noise, written independently of the allocator (sorting, not Newton), so that
tests can ask whether the weights that would be written lead to the shares that were promised.
"""

from __future__ import annotations

from dataclasses import dataclass, field

IDLE_WEIGHT = 0.3
"""WEIGHT_IDLEPRIO is 3 where cpu.weight 100 is 1024 (kernel/sched/sched.h)."""


@dataclass
class Group:
    """A control group: `want` CPUs if it is a leaf, else what its children want, never more than `limit`."""

    weight: float = 100.0
    want: float = 0.0
    limit: float = float("inf")
    idle: bool = False
    children: dict[str, Group] = field(default_factory=dict)
    share: float = 0.0

    def wanted(self) -> float:
        own = sum(child.wanted() for child in self.children.values()) if self.children else self.want
        return min(own, self.limit)

    def fill(self, amount: float) -> None:
        """Give this group `amount` CPUs and let it divide them."""
        self.share = min(amount, self.wanted())
        left, pool = self.share, list(self.children.values())
        pool.sort(key=lambda child: child.wanted() / child.effective())
        weights = sum(child.effective() for child in pool)
        for child in pool:  # those that are satisfied at the lowest level first
            given = min(child.wanted(), left * child.effective() / weights)
            child.fill(given)
            left -= given
            weights -= child.effective()

    def effective(self) -> float:
        return IDLE_WEIGHT if self.idle else self.weight
