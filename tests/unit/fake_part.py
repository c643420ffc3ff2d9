"""A stand-in for each program that ``kolejka up`` starts: gets ready like it, ends like it, notes what happened to it.

``fake_part.py NAME WORDS…``; notes go to the file in FAKE_NOTES, and FAKE_<NAME> says how to misbehave: ``die`` (before
it is ready), ``die-later`` (when the file FAKE_NOTES.die exists), ``stubborn`` (one SIGTERM is not enough), ``deaf``
(none is), ``lacks`` (its doctor finds something).
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import threading
from contextlib import suppress

NAME, WORDS = sys.argv[1], sys.argv[2:]
NOTES = os.environ["FAKE_NOTES"]
HOW = os.environ.get(f"FAKE_{NAME.upper()}", "")


def note(word: str) -> None:
    with open(NOTES, "a", encoding="utf-8") as file:
        file.write(f"{NAME} {word}\n")


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/", "/readyz"} else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return ""


class UnixServer(socketserver.UnixStreamServer):
    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("", 0)


def tell(words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door, suppress(ConnectionRefusedError):  # `up` is gone
        door.sendto(words, os.environ["NOTIFY_SOCKET"].replace("@", "\0"))


def serve(server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()


def client() -> None:
    note(f"{WORDS[0]} with {os.path.basename(os.environ.get('KOLEJKA_CLIENT_TOKEN_FILE', 'none'))}")
    if WORDS[0] == "token":
        print("klj_fake")


def daemon() -> None:
    ended, heard = threading.Event(), []

    def on_term(number: int, frame: object) -> None:
        heard.append(number)
        note("heard SIGTERM")
        if HOW != "deaf" and len(heard) > (HOW == "stubborn"):
            ended.set()

    signal.signal(signal.SIGTERM, on_term)
    if HOW == "die":
        print(f"the {NAME} says why it dies", file=sys.stderr)
        sys.exit(3)
    if NAME == "server":
        data = os.environ["KOLEJKA_SERVER_DATA"]
        os.makedirs(data, exist_ok=True)
        with open(f"{data}/admin.token", "w", encoding="ascii") as file:
            file.write("klj_admin")
        serve(http.server.HTTPServer(("127.0.0.1", int(WORDS[WORDS.index("--port") + 1])), Answer))
    elif NAME == "observer":
        path = os.environ["KOLEJKA_OBSERVER_SOCKET"]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):  # the first start
            os.unlink(path)
        serve(UnixServer(path, Answer))
    else:
        tell(b"READY=1\nSTATUS=fine")
    note("started")
    if HOW == "talks":
        for _ in range(2000):
            tell(b"STATUS=fine")
        note("talked")
    while not ended.wait(0.01):
        if HOW == "die-later" and os.path.exists(f"{NOTES}.die"):
            print(f"the {NAME} says why it dies", file=sys.stderr)
            sys.exit(3)
    if NAME == "foreman":
        tell(b"STOPPING=1")
    note("ended")


if NAME == "client":
    client()
elif "doctor" in WORDS:
    print(json.dumps([{"check": "thing", "ok": HOW != "lacks", "message": "the thing is missing", "cure": "get it"}]))
else:
    daemon()
