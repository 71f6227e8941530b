"""Secrets in settings and messages: found, so that they are never stored; blotted out, so that
they are never shown.

What a setting says lies beside every artifact. Tokens belong into the environment of the machines
that work, or are not needed there at all (the machine's or pod's own identity).
"""

import os
import re
from collections.abc import Iterator
from typing import Any

NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
    "OPENAI_API_KEY",
)
"""Environment variables that hold secrets."""

_more: set[str] = set()  # named by a setting

HIDDEN = "***"

_SHORTEST = 8  # of a secret: a shorter value ("none", "test") is found in innocent text

# user:password@ before the host. Not `container@account`, which is how Azure's paths are written.
_PASSWORD = re.compile(r"(?<=://)[^\s/?#@:]*:[^\s/?#@]+(?=@)")
_SIGNATURE = re.compile(
    r"(?<=[?&])(X-Amz-Signature|X-Amz-Security-Token|X-Amz-Credential|X-Goog-Signature|"
    r"X-Goog-Credential|AWSAccessKeyId|Signature|sig|access_token|token|api[_-]?key|password|secret)=[^&\s'\"]+",
    re.IGNORECASE,
)
_TOKENS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a W&B key": re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}"),
}
# Elsewhere forty hexadecimal digits are a commit.
_WANDB = re.compile(r"^(?:local-)?[0-9a-f]{40}$")


def know(variable: str) -> None:
    """Treat the value of one more environment variable as a secret, from now on."""
    _more.add(variable)


def secret_in(text: str, setting: str = "") -> str | None:
    """What kind of secret a text holds, in words that don't show it; None for none."""
    for name, value in _known():
        if value in text:
            return f"the value of {name}"
    if _PASSWORD.search(text):
        return "a URL with a password"
    if _SIGNATURE.search(text):
        return "a signed URL, or one with a key"
    for kind, pattern in _TOKENS.items():
        if pattern.search(text):
            return kind
    if setting.startswith("tracking.") and _WANDB.match(text):
        return "a W&B key"
    return None


def find_secret(value: Any, setting: str = "") -> tuple[str, str] | None:
    """The first (setting, kind of secret) of nested settings; None where there is none."""
    if isinstance(value, dict):
        parts = [(f"{setting}.{key}" if setting else str(key), v) for key, v in value.items()]
    elif isinstance(value, list):
        parts = [(f"{setting}[{i}]", v) for i, v in enumerate(value)]
    else:
        kind = secret_in(value, setting) if isinstance(value, str) else None
        return None if kind is None else (setting, kind)
    for key, part in parts:
        # Who writes `hf_…: x` has a secret as a name; it must not stand in our message either.
        if secret_in(key) is not None:
            return setting or "a name", secret_in(key) or ""
        found = find_secret(part, key)
        if found is not None:
            return found
    return None


def redacted(text: str) -> str:
    """A message with what looks like a secret, or is one of this environment, blotted out."""
    for _, value in _known():
        text = text.replace(value, HIDDEN)
    text = _PASSWORD.sub(HIDDEN, text)
    text = _SIGNATURE.sub(rf"\1={HIDDEN}", text)
    for pattern in _TOKENS.values():
        text = pattern.sub(HIDDEN, text)
    return text


def _known() -> Iterator[tuple[str, str]]:
    for name in (*NAMES, *sorted(_more)):
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            yield name, value
