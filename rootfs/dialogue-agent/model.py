"""What answers: a model behind an endpoint, or, where none is configured, sentences of a corpus that fit best."""

import collections
import json
import math
import re
import urllib.error
import urllib.request

CONTEXT = 20  # messages of a conversation that are sent along
ANSWER_MAX = 1 << 20


class ModelFailed(Exception):
    """The model gave no answer; the text says why."""


class Endpoint:
    """A server that speaks the chat completions protocol at `url`/chat/completions."""

    def __init__(self, url, name, key="", timeout=60.0):
        self.url, self.name, self.key, self.timeout = url.rstrip("/") + "/chat/completions", name, key, timeout
        if not re.match(r"https?://", self.url):
            raise SystemExit(f"MODEL_ENDPOINT is not an http(s) address: {url}")

    def reply(self, messages):
        body = {"model": self.name, "messages": messages[-CONTEXT:]}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.loads(response.read(ANSWER_MAX))
            text = answer["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            raise ModelFailed(f"the model answers {error.code}") from None
        except OSError as error:
            raise ModelFailed(f"the model cannot be reached: {getattr(error, 'reason', error)}") from None
        except (ValueError, LookupError, TypeError):
            raise ModelFailed("the model's answer is not understood") from None
        if not isinstance(text, str):
            raise ModelFailed("the model's answer is not text")
        return text


class Corpus:
    """Ranks lines by TF-IDF against the last message and, at half weight, against what was asked before."""

    def __init__(self, lines):
        self.lines = lines
        self.documents = [collections.Counter(_words(line)) for line in lines]
        seen = collections.Counter(word for document in self.documents for word in document)
        self.rarity = {word: math.log(len(lines) / count) + 0.1 for word, count in seen.items()}

    def reply(self, messages):
        asked = [message["content"] for message in messages if message["role"] == "user"]
        context = collections.Counter(_words(asked[-1]))
        for earlier in asked[-9:-1]:
            for word in _words(earlier):
                context[word] += 0.5
        scores = [sum(context[w] * n * self.rarity[w] for w, n in document.items()) for document in self.documents]
        return self.lines[scores.index(max(scores))] if max(scores) else "I know nothing about that."


def _words(text):
    return re.findall(r"[a-z]+", text.lower())


def configured(environment, corpus):
    """By MODEL_ENDPOINT, MODEL_NAME, MODEL_KEY_FILE (a path: a key in the environment would be for all to read)."""
    url = environment.get("MODEL_ENDPOINT")
    if not url:
        return Corpus(corpus.read_text(encoding="utf-8").splitlines())
    key = ""
    if path := environment.get("MODEL_KEY_FILE"):
        with open(path, encoding="utf-8") as file:
            key = file.read().strip()
    return Endpoint(url, environment.get("MODEL_NAME", "default"), key, float(environment.get("MODEL_TIMEOUT", "60")))
