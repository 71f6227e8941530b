"""The folder of a cache: its files, what is there and whole, what is missing. No torch.

    FOLDER/000000.safetensors   `hidden` [tokens in the loss of these sequences, D]
    FOLDER/000000.json          put after it: its checksum and what it was made of
    FOLDER/head.safetensors     the base's frozen head, and head.json after it
    FOLDER/index.json           put last: identity, and every file with its checksum

A file without its note was not finished, and is made again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from muscle import storage
from muscle.artifacts import key_of
from muscle.errors import UserError
from muscle.tables import group_sizes
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob

FORMAT = 1

HEAD = -1
"""The number of the piece that is not a shard: the base's head."""

INDEX = "index.json"

Unit = tuple[int, int]
"""(ask, shard) of a `TeacherBase`: the unit of work; shard `HEAD` is the head."""


@dataclass(frozen=True)
class Note:
    """What stands beside a finished file.

    made_of    of `made_of`: a piece of another cache in this folder doesn't count
    data       `Sequences.fingerprint` of all training sequences
    """

    sequences: int
    tokens: int
    hidden_size: int
    sha256: str
    size: int
    made_of: str
    data: str


def piece(shard: int) -> str:
    """The name of a shard's (or the head's) file."""
    return "head.safetensors" if shard == HEAD else f"{shard:06d}.safetensors"


def note_of(name: str) -> str:
    """The name of the note beside a piece."""
    return name.removesuffix(".safetensors") + ".json"


def made_of(job: TeacherJob, ask: TeacherAsk) -> str:
    """A hash of all that a piece's content depends on."""
    return key_of(
        {
            "format": FORMAT,
            "identity": dict(ask.identity),
            "dtype": job.dtype,
            "max_length": job.max_length,
            "loss_on": job.loss_on,
            "shard_sequences": job.shard_sequences,
        }
    )


def write_piece(
    job: TeacherJob, ask: TeacherAsk, shard: int, content: bytes, counts: Mapping[str, Any]
) -> None:
    """Write a piece and then its note; `counts` are the note's other fields.

    Raises:
        UserError: the disk is full, or the place can't be written; the piece counts as missing.
    """
    digest = hashlib.sha256(content).hexdigest()
    note = Note(sha256=digest, size=len(content), made_of=made_of(job, ask), **counts)
    path = storage.join(ask.folder, piece(shard))
    storage.remove(note_of(path))  # of what was here before: it says nothing of the new content
    storage.write_bytes(path, content)
    storage.write_json(note_of(path), asdict(note))


def whole(job: TeacherJob, ask: TeacherAsk, shard: int) -> bool:
    """Whether one piece is there and whole."""
    name = piece(shard)
    path = storage.join(ask.folder, name)
    raw = storage.read_all(ask.folder, [note_of(name)]).get(note_of(name), b"")
    note = _note(raw, made_of(job, ask))
    return note is not None and storage.size(path) == note.size


@dataclass(frozen=True)
class Missing:
    """How far a job is: for each base its missing units with their sequences (the head's
    are 0), and sequences in all, counted once for each ask."""

    units: dict[int, dict[Unit, int]]
    done: int
    total: int


def missing(job: TeacherJob) -> Missing:
    """What is left to compute; bases that lack nothing are not in `units`."""
    count = sum(group_sizes(storage.join(job.examples, "train.parquet")))
    units: dict[int, dict[Unit, int]] = {}
    for number, base in enumerate(job.bases):
        found = _missing_of(job, base, count)
        if found:
            units[number] = found
    total = count * sum(len(base.asks) for base in job.bases)
    lacking = sum(sum(found.values()) for found in units.values())
    return Missing(units, total - lacking, total)


def _missing_of(job: TeacherJob, base: TeacherBase, count: int) -> dict[Unit, int]:
    found = {}
    for number, ask in enumerate(base.asks):
        there = _notes(job, ask)
        for shard, sequences in _shards(job, count).items():
            if piece(shard) not in there:
                found[number, shard] = sequences
    return found


def _shards(job: TeacherJob, count: int) -> dict[int, int]:
    """shard -> its sequences, the head's 0."""
    size = job.shard_sequences
    sizes = {shard: min(size, count - shard * size) for shard in range(-(-count // size))}
    return {HEAD: 0, **sizes}


def finish(job: TeacherJob, ask: TeacherAsk) -> dict[str, dict[str, Any]]:
    """Write the index of a cache whose pieces are all there.

    What killed workers left half-written in the folder is removed. Returns the checksums
    {name: {sha256, size}} of all files but the index, for `Store.commit(known=…)`.

    Raises:
        UserError: a piece is missing, or they were made of different data.
    """
    count = sum(group_sizes(storage.join(job.examples, "train.parquet")))
    names = [piece(shard) for shard in _shards(job, count)]
    there = _notes(job, ask)
    lacking = [name for name in names if name not in there]
    if lacking:
        raise UserError(
            f"teacher cache {ask.folder} lacks {lacking[0]} ({len(lacking)} of {len(names)} "
            "files): run again, the others are kept"
        )
    if len({(there[name][0].data, there[name][0].hidden_size) for name in names}) > 1:
        raise UserError(
            f"teacher cache {ask.folder} holds files of different training tokens: "
            "delete the folder and run again"
        )
    for stray in storage.sizes(ask.folder).keys() - {*names, *map(note_of, names), INDEX}:
        storage.remove(storage.join(ask.folder, stray))
    notes = {name: there[name][0] for name in names}
    storage.write_json(storage.join(ask.folder, INDEX), _index(job, ask, count, notes))
    known = {}
    for name in names:
        note, raw = there[name]
        known[name] = {"sha256": note.sha256, "size": note.size}
        known[note_of(name)] = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    return known


def _index(
    job: TeacherJob, ask: TeacherAsk, count: int, notes: Mapping[str, Note]
) -> dict[str, Any]:
    head = notes[piece(HEAD)]
    shards = {name: note for name, note in notes.items() if name != piece(HEAD)}
    return {
        "format": FORMAT,
        "identity": dict(ask.identity),
        "dtype": job.dtype,
        "hidden_size": head.hidden_size,
        "sequences": count,
        "tokens": sum(note.tokens for note in shards.values()),
        "tokens_fingerprint": head.data,
        "loss_on": job.loss_on,
        "max_length": job.max_length,
        "shard_sequences": job.shard_sequences,
        "shards": [
            {
                "file": name,
                "sequences": note.sequences,
                "tokens": note.tokens,
                "sha256": note.sha256,
                "size": note.size,
            }
            for name, note in shards.items()
        ],
        "head": {"file": piece(HEAD), "sha256": head.sha256, "size": head.size},
    }


def _notes(job: TeacherJob, ask: TeacherAsk) -> dict[str, tuple[Note, bytes]]:
    """The pieces in a cache's folder that are whole: name -> its note, parsed and as it is."""
    sizes = storage.sizes(ask.folder)
    names = [n for n in sizes if n.endswith(".safetensors") and note_of(n) in sizes]
    texts = storage.read_all(ask.folder, [note_of(name) for name in names])
    wanted = made_of(job, ask)
    found = {}
    for name in names:
        raw = texts.get(note_of(name), b"")
        note = _note(raw, wanted)
        if note is not None and note.size == sizes[name]:
            found[name] = (note, raw)
    return found


def _note(raw: bytes, wanted: str) -> Note | None:
    """A note, if it is whole and of a piece of this cache."""
    try:
        note = Note(**json.loads(raw))
    except (ValueError, TypeError):
        return None
    return note if note.made_of == wanted else None
