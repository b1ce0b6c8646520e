"""A small real HTTP server on this machine's loopback, which answers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What goes back: a JSON value, or bytes as they are."""

    body: Any = None
    status: int = 200
    delay_s: float = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Loopback:
    """The server's address, what it was asked, and how many requests it had at once."""

    url: str
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    together: int = 0
    most_together: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


Respond = Callable[[str, Any], Answer]


@contextmanager
def loopback(respond: Respond) -> Iterator[Loopback]:
    """Serve until the block ends; `respond` is given the path and the decoded body."""
    state = Loopback("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: Any) -> None:
            with state.lock:
                state.seen.append((self.path, dict(self.headers), body))
                state.together += 1
                state.most_together = max(state.most_together, state.together)
            answer = respond(self.path, body)
            time.sleep(answer.delay_s)
            with state.lock:
                state.together -= 1
            raw = answer.body
            sent = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # the client hung up, which is what a timeout is

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
