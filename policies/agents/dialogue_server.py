"""A dialogue agent: a small conversational server, with a visitor of its own that never stops talking to it.

Both ends speak over a TCP connection on the loopback of the agent's own network namespace, a line each. The server knows
a few intents by example sentences, finds the nearest by the cosine of letter trigrams, and answers with what it remembers
of the conversation. The visitor makes sentences out of the same words, with slips of the keyboard.
"""

from __future__ import annotations

import math
import random
import socket
import string
from collections import Counter
from collections.abc import Iterator

import workers

INTENTS = {
    "light": ("turn on the light in the kitchen", "make it brighter please", "lights off in the bedroom"),
    "warmth": ("it is too cold here", "set the heating to twenty one degrees", "lower the temperature at night"),
    "music": ("play something quiet", "next song please", "stop the music in the living room"),
    "door": ("is the front door locked", "lock all doors", "who rang at the door this morning"),
    "shopping": ("put milk on the list", "what do we need for supper", "order more coffee"),
    "weather": ("will it rain tomorrow", "do i need an umbrella", "how warm does it get today"),
}
ANSWERS = {
    "light": "The light is set.",
    "warmth": "I have told the heating.",
    "music": "As you like it.",
    "door": "All doors are known and locked.",
    "shopping": "It is on the list.",
    "weather": "Better take a coat.",
}


def trigrams(text: str) -> Counter[str]:
    padded = f"  {text} "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def cosine(one: Counter[str], other: Counter[str]) -> float:
    shared = sum(count * other[gram] for gram, count in one.items())
    norm = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return shared / norm if norm else 0.0


class Server:
    """Answers one line at a time and counts what was talked about."""

    def __init__(self) -> None:
        self._examples = [(intent, trigrams(text)) for intent, texts in INTENTS.items() for text in texts]
        self._talked: Counter[str] = Counter()

    def answer(self, line: str) -> str:
        heard = trigrams(line)
        intent = max(self._examples, key=lambda example: cosine(heard, example[1]))[0]
        self._talked[intent] += 1
        again = f" You asked {self._talked[intent]} times." if self._talked[intent] > 1 else ""
        return ANSWERS[intent] + again


class Visitor:
    """Says sentences of the examples' words."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sentences = [text.split() for texts in INTENTS.values() for text in texts]

    def say(self) -> str:
        words = list(self._random.choice(self._sentences))
        words[self._random.randrange(len(words))] = self._random.choice(self._random.choice(self._sentences))
        text = list(" ".join(words))
        text[self._random.randrange(len(text))] = self._random.choice(string.ascii_lowercase)
        return "".join(text)


def work(number: int) -> Iterator[None]:
    """One question and its answer in each step."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visitor_end = socket.create_connection(listener.getsockname())
        server_end, _ = listener.accept()
    hears, asks = server_end.makefile("r", encoding="utf-8"), visitor_end.makefile("r", encoding="utf-8")
    server, visitor = Server(), Visitor(number)
    while True:
        visitor_end.sendall((visitor.say() + "\n").encode())
        server_end.sendall((server.answer(hears.readline().strip()) + "\n").encode())
        asks.readline()
        yield


if __name__ == "__main__":
    workers.run("dialogue server", "answers", work)
