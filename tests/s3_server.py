"""An S3-compatible server on the loopback: moto's, counting requests and failing at will."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Failure = tuple[int, str]
"""HTTP status and S3 error code."""


@dataclass
class S3Server:
    """A running server; what a test sets on it holds until `calm`.

    requests  (method, path of bucket and key, whether it is a listing) so far
    fail      asked for every request; a `Failure` is answered instead of doing it
    """

    url: str
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    fail: Callable[[str, str], Failure | None] | None = None
    buckets: int = 0

    def calm(self) -> None:
        """Forget the requests, and fail no more."""
        self.requests.clear()
        self.fail = None

    def bucket(self) -> str:
        """`s3://` and a new, empty bucket."""
        import fsspec

        self.buckets += 1
        name = f"bucket-{self.buckets}"
        fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
        return f"s3://{name}"

    def puts(self) -> list[str]:
        """What was written, in its order."""
        return [path for method, path, _ in self.requests if method == "PUT"]

    def gets(self, suffix: str = "") -> list[str]:
        """The objects that were read, by the end of their names."""
        return [
            path
            for method, path, listing in self.requests
            if method == "GET" and not listing and path.endswith(suffix)
        ]


def serve() -> tuple[S3Server, Callable[[], None]]:
    """Start one on a free port of the loopback; returns it and what stops it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)
    running = S3Server("")

    def application(environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"].lstrip("/")
        listing = "list-type" in environment.get("QUERY_STRING", "")
        running.requests.append((method, path, listing))
        failure = running.fail(method, path) if running.fail is not None else None
        if failure is None:
            return moto(environment, start)
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{failure[1]}</Code><Message>told to fail</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start(f"{failure[0]} failed", [*headers, ("Connection", "close")])
        return [] if method == "HEAD" else [body]

    server = make_server("127.0.0.1", 0, application, threaded=True)
    running.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()

    return running, stop
