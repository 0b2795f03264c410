"""A learning agent: learns to balance a pole on a cart by Q-learning, and keeps what it has learned.

    agent.py learn [--episodes N]   learn (without end unless told); report the mean of the last 100 episodes
    agent.py evaluate               balance without exploring, from the checkpoint; print {"episodes", "mean_steps"}

The longest episode is 200 steps (4 seconds); knowing nothing, it takes about 20 to fall. The checkpoint is
$AGENT_DATA/checkpoint.json, replaced whole every few seconds and at the end, so a kill loses seconds, never the file;
`learn` goes on from it. SIGUSR1 rests, SIGUSR2 works.
"""

import argparse
import collections
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import work
from cartpole import LEAN, STEPS_MAX, CartPole

ANGLES, SPINS = 6, 12
SPIN = math.radians(50)
DISCOUNT = 1.0
EVERY = 5.0  # seconds between checkpoints


class Learner:
    """Tabular Q-learning over the pole's angle and spin; rates fall with experience, as its convergence asks for."""

    def __init__(self, seed=None):
        self.chance = random.Random(seed)
        self.cart = CartPole(self.chance)
        self.values = [[0.0, 0.0] for _ in range(ANGLES * SPINS)]
        self.episodes = 0
        self.recent = collections.deque(maxlen=100)

    def rate(self, least):
        return max(least, min(1.0, 1.0 - math.log10((self.episodes + 1) / 25)))

    def cell(self, state):
        angle = min(ANGLES - 1, max(0, int((state[2] / LEAN + 1) / 2 * ANGLES)))
        spin = min(SPINS - 1, max(0, int((state[3] / SPIN + 1) / 2 * SPINS)))
        return angle * SPINS + spin

    def episode(self, learning=True):
        """Play one; its steps."""
        here = self.cell(self.cart.reset())
        curiosity, rate = (self.rate(0.02), self.rate(0.1)) if learning else (0.0, 0.0)
        steps, fallen = 0, False
        while not fallen and steps < STEPS_MAX:
            values = self.values[here]
            action = self.chance.randrange(2) if self.chance.random() < curiosity else int(values[1] > values[0])
            fallen = self.cart.step(action)
            there = self.cell(self.cart.state)
            if learning:
                reward, future = (-1.0, 0.0) if fallen else (1.0, max(self.values[there]))
                values[action] += rate * (reward + DISCOUNT * future - values[action])
            here, steps = there, steps + 1
        if learning:
            self.episodes += 1
            self.recent.append(steps)
        return steps

    def mean(self):
        return sum(self.recent) / len(self.recent) if self.recent else 0.0

    def save(self, path):
        beside = path.with_suffix(".new")
        state = {"values": self.values, "episodes": self.episodes, "recent": list(self.recent)}
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)

    def load(self, path):
        """Go on from the checkpoint, if there is one. One that is not ours is an error, not a fresh start."""
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        if [len(row) for row in state["values"]] != [2] * (ANGLES * SPINS):
            raise ValueError("of another shape")
        self.values, self.episodes = state["values"], int(state["episodes"])
        self.recent.extend(state["recent"])


def learn(learner, checkpoint, episodes):
    if episodes:
        for _ in range(episodes):
            learner.episode()
        learner.save(checkpoint)
        print(json.dumps({"episodes": learner.episodes, "mean_steps": round(learner.mean(), 1)}), flush=True)
        return

    def start(worker):
        if worker == 0:  # one table is kept; the others learn for themselves
            return _saving(learner, checkpoint)
        learner.chance.seed()
        return learner.episode

    work.run(start, lambda _steps, _progress: f"episode {learner.episodes}: {learner.mean():.1f} steps on average")


def _saving(learner, checkpoint):
    saved = time.monotonic()

    def step():
        nonlocal saved
        steps = learner.episode()
        if time.monotonic() - saved > EVERY:
            learner.save(checkpoint)
            saved = time.monotonic()
        return steps

    return step


def evaluate(learner, episodes=100):
    steps = [learner.episode(learning=False) for _ in range(episodes)]
    print(json.dumps({"episodes": learner.episodes, "mean_steps": round(sum(steps) / len(steps), 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("learn").add_argument("--episodes", type=int, default=0)
    modes.add_parser("evaluate")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    checkpoint = Path(os.environ.get("AGENT_DATA", "/var/lib/agent"), "checkpoint.json")
    learner = Learner(arguments.seed)
    try:
        learner.load(checkpoint)
    except (ValueError, LookupError, TypeError) as error:
        sys.exit(f"learning agent: the checkpoint cannot be read ({error}): {checkpoint}")
    if arguments.mode == "evaluate":
        evaluate(learner)
    else:
        learn(learner, checkpoint, arguments.episodes)


if __name__ == "__main__":
    main()
