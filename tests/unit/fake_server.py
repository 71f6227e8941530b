"""An OpenAI-compatible server on 127.0.0.1 that behaves as a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What a request gets. `cut`: the connection is closed in the middle; `wait`: seconds first."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    wait: float = 0.0


def text(words: str, finish: str = "stop") -> Reply:
    return Reply({"choices": [{"index": 0, "text": words, "finish_reason": finish}]})


def chat(words: str | None, finish: str = "stop", **message: Any) -> Reply:
    said = {"role": "assistant", "content": words, **message}
    return Reply({"choices": [{"index": 0, "message": said, "finish_reason": finish}]})


def error(status: int, words: str, **headers: str) -> Reply:
    return Reply({"error": {"message": words}}, status, headers)


@dataclass
class Fake:
    """A running server: what it was asked, and how many requests it had at once at most."""

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=list)
    behave: Callable[["Fake", str, dict[str, Any]], Reply] = lambda fake, path, body: text("yes")
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    pages: dict[str, Any] = field(default_factory=dict)
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bodies(self) -> list[dict[str, Any]]:
        """What was asked in earnest: probes want one token."""
        return [b for _, b, _ in self.asked if b and (b["max_tokens"] != 1 or b.get("echo"))]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a reply waits 40 ms for an acknowledgement
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        headers = {k.lower(): v for k, v in self.headers.items()}
        if path == "/v1/models":
            self.fake.asked.append((path, {}, headers))
            found = self.fake.behave(self.fake, path, {}) if not self.fake.models else None
            self._send(found or Reply({"object": "list", "data": self.fake.models}))
        elif path in self.fake.pages:
            self._send(Reply(self.fake.pages[path]))
        else:
            self._send(Reply({"detail": "Not Found"}, 404))

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.now += 1
            fake.most = max(fake.most, fake.now)
            fake.asked.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
        try:
            self._send(fake.behave(fake, self.path, body))
        finally:
            with fake.lock:
                fake.now -= 1

    def _send(self, reply: Reply) -> None:
        time.sleep(reply.wait)
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) * (2 if reply.cut else 1)))
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client went away
            self.close_connection = True
        if reply.cut:
            self.close_connection = True


class _Http(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 turns away a client with 16 connections


@contextmanager
def serving(
    behave: Callable[[Fake, str, dict[str, Any]], Reply] | None = None,
    models: tuple[str, ...] = ("m1", "m2"),
    **told: Any,
) -> Iterator[Fake]:
    """A server for as long as the context lasts."""
    fake = Fake(models=[{"id": name, "object": "model", "created": 1, **told} for name in models])
    if behave is not None:
        fake.behave = behave
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = _Http(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
