"""A dialogue agent: answers questions over TCP on its own loopback, from a small corpus, remembering each visitor.

Each worker is a server and its visitors at once: real connections, real requests, real ranking of answers. Visitors ask
without pause while the agent is at work.
"""

import collections
import math
import random
import re
import socket

import load

CORPUS = """The heating starts at six and follows the weather forecast.
The living room lamp is dimmed when the film begins.
The front door was locked at ten in the evening.
The robot cleaner is charging and will finish the kitchen after lunch.
The window in the bedroom is open and the heating there is off.
The film tonight is a documentary about the sea.
The cat came in through the garden door at four.
The washing machine needs another twenty minutes.
The cameras saw nobody but the postman today.
The dishwasher is full and runs when electricity is cheap.""".splitlines()


def words(text):
    return re.findall(r"[a-z]+", text.lower())


class Dialogue:
    """Ranks the corpus by TF-IDF against the question and, at half weight, against what the visitor asked before."""

    def __init__(self):
        self.documents = [collections.Counter(words(line)) for line in CORPUS]
        seen = collections.Counter(word for document in self.documents for word in document)
        self.rarity = {word: math.log(len(CORPUS) / count) + 0.1 for word, count in seen.items()}
        self.memory = collections.defaultdict(lambda: collections.deque(maxlen=8))

    def answer(self, visitor, question):
        context = collections.Counter(words(question))
        for earlier in self.memory[visitor]:
            for word in words(earlier):
                context[word] += 0.5
        self.memory[visitor].append(question)
        scores = [sum(context[w] * n * self.rarity[w] for w, n in document.items()) for document in self.documents]
        return CORPUS[scores.index(max(scores))]


def main():
    dialogue, chance = Dialogue(), random.Random()
    vocabulary = sorted(dialogue.rarity)
    doors = {}

    def converse(worker):
        if worker not in doors:
            doors[worker] = socket.create_server(("127.0.0.1", 0))
        door = doors[worker]
        with socket.create_connection(door.getsockname()) as visitor:
            server, _ = door.accept()
            with server:
                name = f"visitor-{chance.randrange(20)}"
                for _ in range(20):
                    visitor.sendall((" ".join(chance.choices(vocabulary, k=6)) + "\n").encode())
                    question = server.recv(4096).decode()
                    server.sendall(dialogue.answer(name, question).encode())
                    visitor.recv(4096)
        return 20

    load.run(converse, lambda talks, turns: f"held {talks} conversations of {turns / talks:.0f} turns")


if __name__ == "__main__":
    main()
