"""A cluster's job server, spoken to through Ray's client."""

import asyncio
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from muscle.credentials import secret_in
from muscle.errors import UserError
from muscle.launch.capacity import OFF_GPUS, ROLE
from muscle.submission.server import Job, LostError, Order, Status

TIMEOUT_S = 10.0
REQUEST_S = 60.0
QUIET_S = 15.0
"""A log that says nothing for so long: is the job still there?"""

NOT_ON_GPUS = {ROLE: OFF_GPUS}
"""Where drivers run; a node without the label will do."""

URL = "http://HOST:8265, the URL of the cluster's dashboard (ray dashboard cluster.yaml; "
URL += "kubectl port-forward)"
TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token (or put it into "
    "~/.ray/auth_token)"
)


def job_server_url(address: str | None) -> str:
    """The URL of `--address`, else of RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        UserError: there is none, or it isn't one.
    """
    named = [("--address", address)]
    named += [(name, os.environ.get(name)) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
    given = [(name, value) for name, value in named if value]
    if not given:
        raise UserError(f"no cluster is named: give --address {URL}")
    name, value = given[0]
    assert value is not None
    if secret_in(value) is not None:
        raise UserError(f"{name} holds a secret, and would be shown: {TOKEN}")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"{name} is {value!r}, which is no URL of a job server: give {URL}; HOST:6379 and "
            "ray:// are for programs that run on the cluster"
        )
    return value.rstrip("/")


def connect(address: str | None) -> "RayJobs":
    """The job server at an address, spoken to once.

    Raises:
        UserError: nothing listens there, it is no Ray, it wants a token or another one, its Ray
            has another version.
    """
    url = job_server_url(address)
    version = _probe(url)
    if version is None:
        _prefer_token()
    else:
        _check_version(url, version)
    return RayJobs(url)


def _probe(url: str) -> str | None:
    """The version of the Ray that answers; None where it first wants a token."""
    request = urllib.request.Request(f"{url}/api/version")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return str(json.loads(answer.read(65536))["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return None
        said = f"HTTP {error.code}"
    except (urllib.error.URLError, TimeoutError, ConnectionRefusedError) as error:
        reason = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason)
        if not isinstance(reason, ConnectionResetError):
            raise UserError(
                f"the job server {url} can't be reached ({text}): check --address, and that the "
                "cluster runs and its port is forwarded to here"
            ) from None
        said = "it hung up"
    except (ValueError, KeyError, TypeError, HTTPException, OSError):
        said = "no version of Ray"
    raise UserError(f"{url} answers, but not as a Ray job server ({said}): give {URL}")


def _check_version(url: str, theirs: str) -> None:
    import ray

    if ray.__version__ != theirs:
        raise UserError(
            f"Ray is {ray.__version__} here and {theirs} at {url}: install the cluster's version "
            "here (pip install 'ray[default]==…'), or build the image with this one"
        )


class RayJobs:
    """A `muscle.submission.server.JobServer`."""

    def __init__(self, url: str):
        self.url = url
        # Ray's client reads these before what it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = url
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                # Ray's own waits for ever.
                return super()._do_request(*arguments, **{"timeout": REQUEST_S, **options})

        for name in (  # they set their levels at import
            "ray.dashboard.modules.job.sdk",
            "ray.dashboard.modules.dashboard_sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self._speaking():
            self._client = Client(url)
        _check_version(url, str(self._client._server_ray_version))

    def submit(self, order: Order) -> bool:
        """Have a job done; False if its id was taken before.

        Raises:
            UserError: the server refuses it.
        """
        with self._speaking():
            try:
                self._client.submit_job(
                    entrypoint=order.entrypoint,
                    submission_id=order.id,
                    # The folder, and nothing else: an environment would be stored and shown.
                    runtime_env={"working_dir": str(order.folder)},
                    metadata=dict(order.metadata),
                    entrypoint_num_cpus=1,
                    entrypoint_label_selector=NOT_ON_GPUS,
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def jobs(self) -> list[Job]:
        """All jobs that the cluster remembers."""
        with self._speaking():
            return [_job(d) for d in self._client.list_jobs() if d.submission_id]

    def job(self, id_: str) -> Job | None:
        """One job; None where there is none of that id."""
        with self._speaking():
            try:
                return _job(self._client.get_job_info(id_))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def logs(self, id_: str) -> str:
        """All that a job has printed; nothing where its node is gone."""
        with self._speaking():
            try:
                return str(self._client.get_job_logs(id_))
            except RuntimeError:
                return ""

    def tail(self, id_: str) -> Iterator[str]:
        """A job's log from its beginning, as it grows, until the job ends; the empty text every
        `QUIET_S` while nothing comes."""
        loop = asyncio.new_event_loop()
        pieces: Any = self._client.tail_job_logs(id_)
        try:
            while True:
                task = loop.create_task(_next(pieces))
                while True:
                    with self._speaking():
                        done, _ = loop.run_until_complete(asyncio.wait({task}, timeout=QUIET_S))
                        if done:
                            piece = task.result()
                            break
                        job = self.job(id_)  # a connection may die without a word
                    if job is None or job.over:
                        return
                    yield ""
                if piece is None:
                    return
                yield piece
        finally:
            for left in asyncio.all_tasks(loop):
                left.cancel()
                loop.run_until_complete(asyncio.wait({left}))
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def stop(self, id_: str) -> None:
        """Ask a job to stop."""
        with self._speaking():
            self._client.stop_job(id_)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Ray's, requests' and aiohttp's errors as ours."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except UserError:
            raise
        except AuthenticationError as error:
            raise UserError(f"{self.url} {_refusal(str(error))}: {TOKEN}") from None
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise UserError(f"{self.url} refuses the token: {TOKEN}") from None
            raise LostError(str(error)) from None
        except (
            requests.RequestException,
            aiohttp.ClientError,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise LostError(" ".join(str(error).split())[:200]) from None
        except (RuntimeError, ValueError) as error:
            text = _last_line(str(error))
            if "WebSocket" in text:
                raise LostError(text) from None
            raise UserError(f"{self.url} refuses: {text}") from None


async def _next(pieces: Any) -> str | None:
    async for piece in pieces:
        return str(piece)
    return None


def _prefer_token() -> None:
    """Speak with the user's token, if there is one, to a server that wants it; Ray's client does
    so only where it is told to. Before Ray's import, which reads it."""
    file = Path("~/.ray/auth_token").expanduser()
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _refusal(text: str) -> str:
    return "refuses the token" if "Invalid" in text or "Forbidden" in text else "wants a token"


def _last_line(text: str) -> str:
    """What an answer with a traceback comes down to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:300]


def _job(details: Any) -> Job:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return Job(
        id=str(details.submission_id or details.job_id),
        status=cast(Status, details.status.value),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        started=seconds(details.start_time),
        ended=seconds(details.end_time),
        metadata=dict(details.metadata or {}),
    )
