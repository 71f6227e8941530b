"""`muscle release`: a run's output folder becomes release.json, if its gate lets it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, cast

from muscle import copies, storage
from muscle.config import VersionConfig
from muscle.errors import UserError
from muscle.experiment import refuse_secrets
from muscle.models.resolve import resolve_model
from muscle.release.finished import Finished, read_finished
from muscle.release.judged import RefusedError, gate_of, said
from muscle.release.peft_config import read_config
from muscle.release.serving import Serving, check_serving
from muscle.released import (
    KIND,
    SCHEMA,
    AdapterShape,
    Allowed,
    Engine,
    Previous,
    Release,
    Released,
    ReleasedAdapter,
    ReleasedBase,
    ReleasedTemplate,
    Serves,
    adapter_files,
    open_release,
)
from muscle.types import Version

NAME = "release.json"


@dataclass(frozen=True)
class Request:
    """What `muscle release` was asked for; see its help."""

    output: str
    version: str | None = None
    file: str | None = None
    previous: str | None = None
    adapter_path: str | None = None
    allow: str | None = None
    seed: int | None = None


def make_release(request: Request, today: date | None = None) -> Released:
    """Check a run's output and write its release.

    Args:
        today: the day that waivers are held against; None: today, in UTC.

    Raises:
        RefusedError: the gate didn't pass, or the adapter doesn't serve, and nothing allows it.
        UserError: whatever a user can mend; nothing was written.
    """
    if request.allow is not None and not request.allow.strip():
        raise UserError("--allow-failed-gate is empty: say why it is released all the same")
    kept = {"--adapter-path": request.adapter_path, "--allow-failed-gate": request.allow}
    refuse_secrets({name: text for name, text in kept.items() if text is not None})
    run = read_finished(request.output, request.seed)
    file = _file(request, run)
    day = today or datetime.now(UTC).date()
    version, gate = _choose(run, request, day)
    serving = check_serving(run.adapter(version))
    broken = [] if gate is not None and gate["verdict"] == "pass" else [said(gate)]
    broken += [f"vLLM: {f.what}: {f.text}" for f in serving.findings if f.level == "fails"]
    if not serving.serves and request.allow is None:
        first = serving.findings[0]
        raise RefusedError(
            f"{version}'s adapter does not serve in vLLM ({first.text}): {first.mend}, or release "
            "it for another engine with --allow-failed-gate REASON"
        )
    allowed = None
    if broken and request.allow is not None:
        allowed = Allowed(reason=request.allow.strip(), what=broken)
    record = _record(run, version, gate, serving, allowed, file, request)
    storage.write_json(file, record.model_dump(mode="json", by_alias=True))
    return open_release(file)


def _file(request: Request, run: Finished) -> str:
    file = storage.absolute(request.file or storage.join(run.output, NAME))
    fs, inside = storage.filesystem(file)
    if fs.isdir(inside):
        raise UserError(f"--output is {file!r}, which is a folder: name the file, as {NAME}")
    if fs.exists(inside):
        there = storage.read_json(file)
        if not isinstance(there, dict) or not str(there.get("schema")).startswith(KIND):
            raise UserError(f"--output is {file!r}, which is no release: name another file")
    return file


def _choose(run: Finished, request: Request, today: date) -> tuple[Version, dict[str, Any] | None]:
    """The version to release, and its gate's result: compat's first, if it is there."""
    known = run.versions()
    if request.version not in (None, *known):
        raise UserError(f"--version is {request.version!r}: this run has {' and '.join(known)}")
    wanted = known if request.version is None else [cast(Version, request.version)]
    gates = {version: gate_of(run, version, today) for version in wanted}
    for version, gate in gates.items():
        if gate is not None and gate["verdict"] == "pass":
            return version, gate
    if request.allow is not None:
        return wanted[0], gates[wanted[0]]
    if gates[wanted[0]] is None:
        raise RefusedError(
            f"{run.output} has no gate.json: say what an update must keep to, as muscle gate "
            f"{run.output} --max-nfr 0.02, or release it with --allow-failed-gate REASON"
        )
    every = "; ".join(said(gate) for gate in gates.values())
    raise RefusedError(f"{every}: mend it, or release it with --allow-failed-gate REASON")


def _record(
    run: Finished,
    version: Version,
    gate: dict[str, Any] | None,
    serving: Serving,
    allowed: Allowed | None,
    file: str,
    request: Request,
) -> Release:
    about = run.about(version)
    served = _serves(run, version, about, file)
    if request.adapter_path is not None:
        served = _elsewhere(served, request.adapter_path)
    engine = {name: about.get(name) for name in ("backend", "dtype", "max_length", "software")}
    waivers = [] if gate is None else gate["waivers"]
    kept = ("id", "task", "reason", "until")
    return Release(
        schema_=SCHEMA,
        name=run.experiment.name,
        tasks=[run.task],
        version=cast(Any, version),
        seed=run.seed,
        engine=Engine.model_validate(engine),
        report_sha256=run.report_sha256,
        gate=None if gate is None else {k: v for k, v in gate.items() if k != "waivers"},
        waivers=[{k: w[k] for k in kept} for w in waivers if w["state"] == "used"],
        allowed=allowed,
        serving=serving.json(),
        scores={run.task: _scores(run.block(), version)},
        previous=_previous(run, request.previous, file),
        **served.__dict__,
    )


def _serves(run: Finished, version: Version, about: Mapping[str, Any], file: str) -> Serves:
    config, folder = run.config(version), run.adapter(version)
    peft = read_config(copies.fetch(folder))
    largest = max([peft.r, *(peft.rank_pattern or {}).values()])
    shape = AdapterShape(r=largest, alpha=peft.lora_alpha, targets=_sorted(peft.target_modules))
    # As a run pins it: a directory is what its files are, a hub model its commit.
    local = os.path.isdir(resolve_model(config.model))
    revision = None if local else str(about["base"])
    return Serves(
        base=ReleasedBase(model=config.model, revision=revision, fingerprint=about["base"]),
        adapter=ReleasedAdapter(
            path=_beside(folder, file),
            files=cast(Any, adapter_files(folder)),
            fingerprint=about["adapter"],
            config=shape,
        ),
        chat_template=_template(run, config, about.get("chat_template"), file),
    )


def _sorted(targets: list[str] | str | None) -> list[str] | str | None:
    return sorted(targets) if isinstance(targets, list) else targets


def _template(
    run: Finished, config: VersionConfig, name: str | None, file: str
) -> ReleasedTemplate | None:
    """The template that chats were rendered by; one that is a file of its own must be it still."""
    if name is None:
        return None
    if config.chat_template is None:  # the tokenizer's: part of the base's fingerprint
        return ReleasedTemplate(fingerprint=name)
    from muscle.models.chat_template import load_chat_template
    from muscle.models.load import load_tokenizer

    given = copies.fetch(config.chat_template)
    tokenizer = load_tokenizer(config.model, config.revision)
    template = load_chat_template(tokenizer, given, run.experiment.task.date)
    if template.name != name:
        raise UserError(
            f"{run.output}: the chat template {config.chat_template} is not the one that chats "
            "were rendered by (it was changed since the report): run it again"
        )
    place = _beside(config.chat_template, file)
    return ReleasedTemplate(fingerprint=name, file=place, sha256=storage.sha256(given))


def _beside(path: str, file: str) -> str:
    """A path as release.json writes it: relative where it lies below its folder, so that both
    can be moved together."""
    path, folder = storage.absolute(path), file.rpartition("/")[0] + "/"
    return path.removeprefix(folder)


def _elsewhere(served: Serves, path: str) -> Serves:
    """The adapter where it is served from. What can be seen from here must be the same."""
    if not path:
        raise UserError("--adapter-path is empty: name where the adapter is served from")
    if storage.exists(path):
        found = adapter_files(path)
        names = [n for n, digest in served.adapter.files.items() if found.get(n) != digest]
        if names:
            raise UserError(
                f"--adapter-path {path}: {names[0]} is not the judged adapter's: copy it there"
            )
    adapter = served.adapter.model_copy(update={"path": path})
    return served.model_copy(update={"adapter": adapter})


def _scores(block: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """What was measured: scores, and the flips from old, as fractions."""
    pair = block["pairs"][f"old->{version}"]
    names = ("negative", "positive", "nfr", "relative_nfr", "pfr", "gain")
    flips = {name: pair.get(name) for name in names}
    flips["ci95"] = {name: (pair.get("ci95") or {}).get(name) for name in ("nfr", "gain")}
    flips["bounds95"] = {name: (pair.get("bounds95") or {}).get(name) for name in ("nfr", "gain")}
    floor = block.get("noise_floor")
    return {
        "n": block["n"],
        "unscored": block["unscored"],
        "metric": block["metric"],
        "scores": {v: block["versions"][v]["score"] for v in ("old", version)},
        "flips": flips,
        "noise_floor": None if floor is None else floor["nfr"],
    }


def _previous(run: Finished, given: str | None, file: str) -> Previous:
    """What was served before: old as it was, or the release it was taken from."""
    about = run.about("old")
    path = given or run.experiment.old.release
    if path is None:
        return Previous(**_serves(run, "old", about, file).__dict__)
    released = open_release(path)
    record = released.record
    for what, mine in (("adapter", record.adapter), ("base", record.base)):
        if mine.fingerprint != about[what]:
            raise UserError(
                f"release {path}: its {what} is not that of this run's old, from which the flips "
                f"were counted: run the update with old: {{release: {path}}}"
            )
    adapter = record.adapter.model_copy(
        update={"path": _beside(released.place(record.adapter.path), file)}
    )
    template = record.chat_template
    if template is not None and template.file is not None:
        place = _beside(released.place(template.file), file)
        template = template.model_copy(update={"file": place})
    return Previous(
        base=record.base,
        adapter=adapter,
        chat_template=template,
        release=_beside(released.path, file),
        sha256=released.sha256,
    )
