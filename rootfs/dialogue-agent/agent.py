"""A dialogue agent: keeps conversations and serves them over HTTP.

    agent.py serve [--port 8080]    until it is stopped
    agent.py rehearse               a server and visitors for each CPU talk without end (SIGUSR1 rests, SIGUSR2 works)

    POST /v1/conversations                      -> 201 {"id": …}
    POST /v1/conversations/ID/messages {"text"} -> 200 {"reply": …}; 502: the model failed, nothing is kept
    GET  /v1/conversations/ID                   -> 200 {"messages": [{"role", "content"}, …]}
    GET  /healthz                               -> 200 {"model": …, "conversations": …}

A conversation is a file of lines of JSON below $AGENT_DATA, written before the answer is sent, so that it goes on after
a restart. MODEL_ENDPOINT says which model answers (see model.py); without one the sentences of corpus.txt do.
"""

import argparse
import http.client
import json
import os
import random
import re
import secrets
import signal
import socketserver
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import model
import work

HERE = Path(__file__).resolve().parent
BODY_MAX = 64 << 10
TURNS_MAX = 2000
VISITORS = 4  # at once: while one reads its answer another is being answered
PATH = re.compile(r"/v1/conversations/([0-9a-f]{16})(/messages)?\Z")


class Refused(Exception):
    """What the client did wrong: a status and a reason."""


class Conversations:
    """The files of all conversations. One lock for each: two messages at once are answered one after the other."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.locks, self.guard = {}, threading.Lock()

    def begin(self):
        name = secrets.token_hex(8)
        (self.directory / f"{name}.jsonl").touch(exist_ok=False)
        return name

    def count(self):
        return sum(1 for _ in self.directory.glob("*.jsonl"))

    def messages(self, name):
        try:
            with open(self.directory / f"{name}.jsonl", encoding="utf-8") as file:
                return [json.loads(line) for line in file if line.endswith("\n")]  # a kill may have cut the last one
        except FileNotFoundError:
            raise Refused(404, "no such conversation") from None

    def say(self, name, text, mind):
        """`text` and what `mind` replies, both kept or neither."""
        with self.guard:
            lock = self.locks.setdefault(name, threading.Lock())
        with lock:
            messages = self.messages(name)
            if len(messages) >= 2 * TURNS_MAX:
                raise Refused(409, f"the conversation has {TURNS_MAX} turns; begin a new one")
            asked = {"role": "user", "content": text}
            reply = mind.reply([*messages, asked])
            answered = {"role": "assistant", "content": reply}
            lines = "".join(json.dumps(message) + "\n" for message in (*messages, asked, answered))
            beside = self.directory / f"{name}.new"
            beside.write_text(lines, encoding="utf-8")
            beside.rename(self.directory / f"{name}.jsonl")
            return reply


class Handler(BaseHTTPRequestHandler):
    """One connection; `server` has `conversations` and `mind`."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = 1 << 16  # an answer is one segment: no waiting for the acknowledgement of its head
    disable_nagle_algorithm = True

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def _get(self):
        if self.path == "/healthz":
            return 200, {"model": type(self.server.mind).__name__, "conversations": self.server.conversations.count()}
        found = PATH.match(self.path)
        if not found or found[2]:
            raise Refused(404, "no such place")
        return 200, {"messages": self.server.conversations.messages(found[1])}

    def _post(self):
        body = self._body()
        if self.path == "/v1/conversations":
            return 201, {"id": self.server.conversations.begin()}
        found = PATH.match(self.path)
        if not found or not found[2]:
            raise Refused(404, "no such place")
        text = body.get("text") if isinstance(body, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise Refused(400, 'a message is {"text": "…"}')
        return 200, {"reply": self.server.conversations.say(found[1], text, self.server.mind)}

    def _body(self):
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > BODY_MAX:
            self.close_connection = True
            raise Refused(413, f"at most {BODY_MAX} bytes")
        try:
            return json.loads(self.rfile.read(int(length)) or "{}")
        except ValueError:
            raise Refused(400, "not JSON") from None

    def _answer(self, handle):
        try:
            status, body = handle()
        except Refused as refused:
            status, body = refused.args[0], {"error": refused.args[1]}
        except model.ModelFailed as failed:
            status, body = 502, {"error": str(failed)}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *arguments):
        if not self.server.quiet:
            print(self.address_string(), format % arguments, flush=True)


class Server(ThreadingHTTPServer):
    """Everything that the handlers share."""

    daemon_threads = True

    def __init__(self, address, directory, mind, quiet=False):
        super().__init__(address, Handler)
        self.conversations, self.mind, self.quiet = Conversations(directory), mind, quiet

    def server_bind(self):
        socketserver.TCPServer.server_bind(
            self
        )  # http.server would look its own name up, for which there is no network
        self.server_name, self.server_port = self.server_address[:2]


def serve(port, directory, mind):
    with Server(("", port), directory, mind) as server:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print(f"dialogue agent: answers on port {server.server_address[1]}, by {type(mind).__name__}", flush=True)
        server.serve_forever()


def rehearse(mind):
    words = sorted(mind.rarity)

    def start(_worker):
        server, chance = Server(("127.0.0.1", 0), Path(tempfile.mkdtemp()), mind, quiet=True), random.Random()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visitors = ThreadPoolExecutor(VISITORS)

        def converse(_visitor):
            visitor = http.client.HTTPConnection(*server.server_address[:2])
            name = _post(visitor, "/v1/conversations", {})["id"]
            for _ in range(5):
                _post(visitor, f"/v1/conversations/{name}/messages", {"text": " ".join(chance.choices(words, k=6))})
            visitor.close()
            (server.conversations.directory / f"{name}.jsonl").unlink()
            return 5

        return lambda: sum(visitors.map(converse, range(VISITORS)))

    def report(steps, turns):
        return f"held {steps * VISITORS} conversations of {turns / steps / VISITORS:.0f} turns"

    work.run(start, report)


def _post(visitor, path, body):
    visitor.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return json.loads(visitor.getresponse().read())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("serve").add_argument("--port", type=int, default=8080)
    modes.add_parser("rehearse")
    arguments = parser.parse_args()
    if arguments.mode == "rehearse":
        rehearse(model.configured({}, HERE / "corpus.txt"))
        return
    directory = Path(os.environ.get("AGENT_DATA", "/var/lib/agent"))
    try:
        serve(arguments.port, directory, model.configured(os.environ, HERE / "corpus.txt"))
    except OSError as error:
        sys.exit(f"dialogue agent: {error}")


if __name__ == "__main__":
    main()
