"""A teacher's scores of whole answers: K log-likelihoods of each question, a few floats.

    FOLDER/scores.parquet   id, loglikelihoods (fp32, natural log, of the whole answer); its
                            metadata says what it was made of

They are the evaluation engine's, by the teacher's own tokenizer. A question that it couldn't
score isn't there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muscle import storage
from muscle.copies import fetch
from muscle.errors import UserError
from muscle.tables import reason_line
from muscle.teachers.identity import check_identity

FILE = "scores.parquet"
IDENTITY = b"muscle.identity"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("loglikelihoods", pa.list_(pa.field("item", pa.float32(), nullable=False)), False),
    ]
)

MEND = "delete the folder and run again"


def write_scores(
    folder: Path, scores: Mapping[str, Sequence[float]], identity: Mapping[str, Any]
) -> None:
    """Write a teacher's scores by question's id, with what they were made of."""
    table = pa.table(
        {"id": list(scores), "loglikelihoods": [list(found) for found in scores.values()]},
        schema=SCHEMA.with_metadata({IDENTITY: json.dumps(dict(identity), sort_keys=True)}),
    )
    pq.write_table(table, folder / FILE)


def read_scores(folder: str, identity: Mapping[str, Any]) -> dict[str, list[float]]:
    """The inverse of `write_scores`.

    Raises:
        UserError: no such file, a damaged one, scores that aren't finite, or made of
            something else.
    """
    path = storage.join(storage.absolute(folder), FILE)
    try:
        table = pq.read_table(storage.join(fetch(storage.absolute(folder)), FILE))
    except (OSError, pa.ArrowException) as error:
        reason = reason_line(error)
        raise UserError(f"teacher's scores {path} can't be read ({reason}): {MEND}") from error
    noted = (table.schema.metadata or {}).get(IDENTITY)
    if noted is None or table.schema.remove_metadata() != SCHEMA:
        raise UserError(f"teacher's scores {path} are not what muscle writes: {MEND}")
    check_identity(f"teacher's scores {path} were", json.loads(noted), identity, MEND)
    values = table["loglikelihoods"].combine_chunks().flatten().to_numpy()
    if not bool((abs(values) < float("inf")).all()):
        raise UserError(f"teacher's scores {path} hold NaN or infinity: {MEND}")
    return dict(zip(table["id"].to_pylist(), table["loglikelihoods"].to_pylist(), strict=True))
