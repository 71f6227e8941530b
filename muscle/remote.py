"""File systems of stores whose failures are one line: what is wrong with which path, and the mend.

Each driver of fsspec raises errors of its own library. Only what callers tell apart (a file
that is there or isn't) goes through as it is.
"""

import errno
from typing import Any

from muscle.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT}
_KEPT = (UserError, FileExistsError, IsADirectoryError, NotADirectoryError)
_VERBS = {
    **dict.fromkeys(("pipe_file", "put_file", "makedirs", "write", "flush", "close"), "written"),
    **dict.fromkeys(("rm", "rm_file"), "removed"),
}
_FULL_CODES = {
    "QuotaExceeded",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "InsufficientCapacity",
    "InsufficientStorage",
    "507",
}
_REFUSED_CODES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "ProxyConnectionError",
    "SSLError",
    "HTTPClientError",
    "ClientConnectorError",
    "ClientConnectionError",
    "ServerDisconnectedError",
    "FSTimeoutError",
}
_LIBRARIES = {
    "adlfs",
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "requests",
    "s3fs",
    "urllib3",
}


class StoreError(UserError):
    """A store refused or failed; what was finished before stays."""


class Guarded:
    """A remote file system, or a file opened in it, that raises `StoreError` for `path`."""

    def __init__(self, target: Any, path: str):
        self._target, self._path = target, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is being copied
            raise AttributeError(name)
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            result = self._run(name, found, *arguments, **named)
            return Guarded(result, self._path) if name == "open" else result

        return call

    def __enter__(self) -> "Guarded":
        self._target.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._run("flush", self._target.__exit__, *raised)

    def __iter__(self) -> "Guarded":
        self._target.__iter__()
        return self

    def __next__(self) -> Any:
        return self._run("read", self._target.__next__)

    def _run(self, name: str, call: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except Exception as error:
            told = told_of(self._path, error, _VERBS.get(name, "read"))
            if told is error:
                raise
            raise told from error


def told_of(path: str, error: Exception, verb: str = "read") -> Exception:
    """What to raise for a store's error: a `StoreError`, or the error itself where it is one that
    callers tell apart, or no store's.

    verb: what was done to the path: "read", "written" or "removed".
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    codes = _codes(error)
    ours = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _LIBRARIES
    missing = isinstance(error, FileNotFoundError)
    bucket = path.split("://", 1)[-1].split("/", 1)[0]
    if isinstance(error, _KEPT) or not ours:
        return error
    if missing and (verb == "written" or "NoSuchBucket" in codes):
        return StoreError(f"{path}: there is no bucket {bucket!r}: create it, or mend the path")
    if missing:
        return error
    if getattr(error, "errno", None) in FULL and not codes and verb != "written":
        return error  # of the local disk, where a copy is made
    if verb == "written" and (codes & _FULL_CODES or getattr(error, "errno", None) in FULL):
        return StoreError(
            f"no space left while writing {path}: free some and run again, it resumes"
        )
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    reason = reason or type(error).__name__
    if names & _NO_CREDENTIALS:
        return StoreError(
            f"{path}: no credentials ({reason}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or give the machine a role"
        )
    if codes & _REFUSED_CODES:
        return StoreError(f"{path}: the store refuses the credentials ({reason}): renew them")
    if isinstance(error, PermissionError):
        return StoreError(
            f"{path}: access denied ({reason}): let these credentials list, read, write and "
            "delete there"
        )
    if names & _UNREACHABLE or isinstance(error, ConnectionError | TimeoutError):
        return StoreError(
            f"{path}: the store can't be reached ({reason}): check the network, and "
            "AWS_ENDPOINT_URL where the store isn't Amazon's; run again, it resumes"
        )
    if codes == {"400"}:  # an answer to HEAD has no words
        reason += " (the store doesn't say why; credentials that have expired look so)"
    return StoreError(f"{path} can't be {verb}: {reason}")


def _codes(error: BaseException | None) -> set[str]:
    """What the server said, as codes: of the error and of those that it came from."""
    found: set[str] = set()
    for _ in range(5):
        if error is None:
            break
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")))
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if isinstance(status, int | str):
            found.add(str(status))
        error = error.__cause__
    return found
