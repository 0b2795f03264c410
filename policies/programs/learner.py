"""A learning agent: tabular Q-learning finds the way through a grid; it reports how short its way has become."""

import argparse
import random

import load

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


class Grid:
    """Start at one corner, goal at the other, a fifth of the cells blocked; 1 for the goal, -0.01 for each step."""

    def __init__(self, size, seed=3):
        chance = random.Random(seed)
        self.size = size
        self.blocked = {(chance.randrange(size), chance.randrange(size)) for _ in range(size * size // 5)}
        self.blocked -= {(0, n) for n in range(size)} | {(n, size - 1) for n in range(size)}  # one way stays open

    def step(self, cell, move):
        row, column = cell[0] + move[0], cell[1] + move[1]
        if not (0 <= row < self.size and 0 <= column < self.size) or (row, column) in self.blocked:
            return cell, -0.05, False
        done = (row, column) == (self.size - 1, self.size - 1)
        return (row, column), 1.0 if done else -0.01, done


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=12)
    grid = Grid(parser.parse_args().size)
    values, chance = {}, random.Random()

    def episode(_worker, rate=0.3, discount=0.97, curiosity=0.1):
        cell, done, steps = (0, 0), False, 0
        while not done and steps < 400:
            known = values.setdefault(cell, [0.0] * 4)
            action = chance.randrange(4) if chance.random() < curiosity else known.index(max(known))
            cell, reward, done = grid.step(cell, MOVES[action])
            future = 0.0 if done else max(values.setdefault(cell, [0.0] * 4))
            known[action] += rate * (reward + discount * future - known[action])
            steps += 1
        return steps

    load.run(episode, lambda episodes, steps: f"learned {episodes} episodes of {steps / episodes:.1f} steps on average")


if __name__ == "__main__":
    main()
