"""The pole on a cart of Barto, Sutton and Anderson (1983): push left or right so that the pole stays up."""

import math

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, TIME = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TRACK, LEAN = 2.4, math.radians(12)
STEPS_MAX = 200


class CartPole:
    """State: position, speed, angle, angular speed (metres, radians, seconds)."""

    def __init__(self, chance):
        self.chance = chance
        self.state = (0.0, 0.0, 0.0, 0.0)

    def reset(self):
        self.state = tuple(self.chance.uniform(-0.05, 0.05) for _ in range(4))
        return self.state

    def step(self, push_right):
        """One push; whether the pole has fallen or the track has ended."""
        x, speed, angle, spin = self.state
        force = FORCE if push_right else -FORCE
        sine, cosine = math.sin(angle), math.cos(angle)
        pushed = (force + POLE * HALF_LENGTH * spin * spin * sine) / (CART + POLE)
        turned = (GRAVITY * sine - cosine * pushed) / (HALF_LENGTH * (4 / 3 - POLE * cosine * cosine / (CART + POLE)))
        moved = pushed - POLE * HALF_LENGTH * turned * cosine / (CART + POLE)
        self.state = (x + TIME * speed, speed + TIME * moved, angle + TIME * spin, spin + TIME * turned)
        return abs(self.state[0]) > TRACK or abs(self.state[2]) > LEAN
