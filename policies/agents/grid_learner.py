"""A learning agent: Q-learning on a grid with walls, whose goal moves as soon as it has been learnt.

Usage: grid_learner.py [SIDE]. The grid has SIDE × SIDE cells (12). An episode walks from a random cell to the goal with
an epsilon-greedy policy and updates the action values by Q(s,a) += α·(r + γ·max Q(s',·) − Q(s,a)).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import workers

ALPHA, GAMMA, EPSILON = 0.2, 0.95, 0.1
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
LEARNT_STEPS = 1.5
"""A goal counts as learnt when walks are this many times the grid's side on average."""


class Grid:
    """Cells, a fifth of them walls, and a goal."""

    def __init__(self, side: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.side = side
        self.walls = {divmod(cell, side) for cell in self.random.sample(range(side * side), side * side // 5)}
        self.goal = self.free()

    def free(self) -> tuple[int, int]:
        """Any cell that is no wall."""
        while True:
            cell = divmod(self.random.randrange(self.side * self.side), self.side)
            if cell not in self.walls:
                return cell

    def step(self, cell: tuple[int, int], move: int) -> tuple[tuple[int, int], float]:
        """Where a move leads, and its reward."""
        row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
        inside = 0 <= row < self.side and 0 <= column < self.side
        reached = (row, column) if inside and (row, column) not in self.walls else cell
        return reached, (10.0 if reached == self.goal else -1.0)


class Learner:
    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._values: dict[tuple[int, int], list[float]] = {}
        self._mean_steps = float(grid.side**2)

    def episode(self) -> None:
        """One walk; a new goal when the last ones were short."""
        cell = self._grid.free()
        steps = 0
        while cell != self._grid.goal and steps < self._grid.side**2:
            steps += 1
            values = self._values.setdefault(cell, [0.0] * 4)
            greedy = self._grid.random.random() > EPSILON
            move = values.index(max(values)) if greedy else self._grid.random.randrange(4)
            cell_after, reward = self._grid.step(cell, move)
            ahead = 0.0 if cell_after == self._grid.goal else max(self._values.get(cell_after, (0.0,)))
            values[move] += ALPHA * (reward + GAMMA * ahead - values[move])
            cell = cell_after
        self._mean_steps += 0.02 * (steps - self._mean_steps)
        if self._mean_steps < LEARNT_STEPS * self._grid.side:
            self._grid.goal = self._grid.free()
            self._values.clear()
            self._mean_steps = float(self._grid.side**2)


def work(number: int) -> Iterator[None]:
    """One episode in each step."""
    learner = Learner(Grid(int(sys.argv[1]) if len(sys.argv) > 1 else 12, seed=number))
    while True:
        learner.episode()
        yield


if __name__ == "__main__":
    workers.run("grid learner", "episodes", work)
