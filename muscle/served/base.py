"""A model that a server has: what tells it from others, and the key of its predictions."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muscle.bases import Base
from muscle.config import EvaluationConfig, VersionConfig
from muscle.errors import UserError
from muscle.plan import Step
from muscle.served.failures import one_line
from muscle.served.loops import finished

if TYPE_CHECKING:
    from muscle.served.server import Server

ENGINES = {"vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang"}
"""`owned_by` of servers that put themselves there."""

_TOLD = ("owned_by", "root", "parent", "max_model_len")
_META = ("n_params", "size", "n_vocab", "n_embd")  # llama.cpp


@dataclass(frozen=True)
class ServedBase(Base):
    """A model of a server; it has no files here, so `config.model` is only its name there.

    fingerprint  of the URL, the name, and what the server tells of engine and model
    url          of the server
    engine       who answers, in the server's own words
    """

    url: str = ""
    engine: str = ""


def resolve_served(
    models: Mapping[str, VersionConfig], evaluation: EvaluationConfig
) -> dict[str, ServedBase]:
    """Each model as its server describes it now.

    Raises:
        UserError: no URL for a model, an adapter by `+`, nobody answers, a key that isn't taken.
    """
    urls: dict[str, str] = {}
    for name, model in models.items():
        urls[name] = _url(name, model, evaluation)
    given = evaluation.server.base_url
    for name in given if isinstance(given, dict) else ():
        if name not in models:
            raise UserError(
                f"--base-url {name}=…: no --model is called '{name}': name one of "
                f"{', '.join(models)}"
            )
    found = finished(_look(sorted(set(urls.values())), evaluation))
    return {name: _base(model, urls[name], *found[urls[name]]) for name, model in models.items()}


def served_step(
    label: str, base: ServedBase, queries: Step, evaluation: EvaluationConfig, repeat: int
) -> Step:
    """The step of a served model's predictions: number format and window are the server's."""
    inputs: dict[str, Any] = {
        "base": base.fingerprint,
        "queries": queries.key,
        "backend": "openai",
        "extra_body": evaluation.server.extra_body,
        "endpoint": evaluation.server.endpoint,
    }
    if repeat:
        inputs["repeat"] = repeat
    return Step("predictions", label, inputs)


def served_about(
    about: Mapping[str, Any], base: ServedBase, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """What is known of how a server's predictions were made: what only it knows is left out."""
    kept = {k: v for k, v in about.items() if k not in ("dtype", "max_length")}
    libraries = {k: v for k, v in about["software"].items() if k in ("muscle", "lm_eval")}
    extra = evaluation.server.extra_body
    return {**kept, "backend": base.engine, "software": libraries, "extra_body": extra or None}


def called(model: VersionConfig) -> str:
    """A model's name at its server, as typed."""
    return model.model + (f"@{model.revision}" if model.revision else "")


def _url(name: str, model: VersionConfig, evaluation: EvaluationConfig) -> str:
    if model.adapter is not None:
        raise UserError(
            f"{name}: a server has names for its adapters: write --model {name}=NAME with the name "
            f"under which it serves this one, not {model.model}+{model.adapter}"
        )
    url = evaluation.server.url(name)
    if url is None:
        raise UserError(f"{name}: no server is given for it: add --base-url {name}=URL")
    return url


async def _look(
    urls: list[str], evaluation: EvaluationConfig
) -> dict[str, tuple[str, list[dict[str, Any]] | None]]:
    """url -> (engine, what it serves)."""
    from muscle.served.server import Server  # its client is slow to import

    found = {}
    for url in urls:
        async with Server(url, evaluation.server) as one:
            listed = await one.models()
            found[url] = (await _engine(one, listed or []), listed)
    return found


async def _engine(server: "Server", listed: list[dict[str, Any]]) -> str:
    """Who answers: by `owned_by`, its /version or /info, else by the `server` header."""
    owners = [ENGINES.get(str(one.get("owned_by", "")).lower()) for one in listed]
    name = next((owner for owner in owners if owner), "")
    told, header = await server.look("/version")
    version = str(told["version"]) if isinstance(told, dict) and told.get("version") else ""
    if not name and not version:
        told, header = await server.look("/info")  # TGI
        if isinstance(told, dict) and told.get("version") and told.get("model_id"):
            name, version = "text-generation-inference", str(told["version"])
    name = name or header or "unknown engine"
    return "openai: " + one_line(f"{name} {version}".strip())[:80]


def _base(
    model: VersionConfig, url: str, engine: str, listed: list[dict[str, Any]] | None
) -> ServedBase:
    name = called(model)
    told = next((one for one in listed or [] if one.get("id") == name), {})
    facts = {key: told[key] for key in _TOLD if told.get(key) is not None}
    meta = told.get("meta")
    if isinstance(meta, dict):
        facts |= {key: meta[key] for key in _META if meta.get(key) is not None}
    text = json.dumps([url, name, engine, facts], sort_keys=True, default=str)
    return ServedBase(
        config=VersionConfig(model=name),
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        given_adapter=None,
        url=url,
        engine=engine,
    )
