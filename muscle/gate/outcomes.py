"""Which examples flipped, by id, from examples.parquet beside a report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muscle.errors import UserError
from muscle.gate.reading import AGAIN
from muscle.report.text import one_line
from muscle.storage import filesystem, join

EXAMPLES = "examples.parquet"

_RIGHT = ("both_right", "negative", "equal")

Example = tuple[str, str]
"""A task and an id in it."""

Wanted = tuple[str | None, str]
"""A task (None: every task that has the id) and an id."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of some examples under one pair, in any of the seeds.

    `right`: those that the first version has right in one of them, at least.
    `negative`: how many negative flips each task has, of all examples and seeds together.
    """

    known: frozenset[Example]
    flipped: frozenset[Example]
    unscored: frozenset[Example]
    negative: Mapping[str, int] = field(default_factory=dict)
    right: frozenset[Example] = frozenset()

    def resolve(self, wanted: Sequence[Wanted], file: str) -> list[frozenset[Example]]:
        """The examples that each entry of a user's file names, at least one each.

        Raises:
            UserError: an entry names none; the first such is shown.
        """
        tasks: dict[str, set[str]] = {}
        for place, name in self.known:
            tasks.setdefault(name, set()).add(place)
        found = []
        for task, name in wanted:
            here = {t for t in tasks.get(name, ()) if task in (None, t)}
            if not here:
                where = "in no task" if task is None else f"not in task {one_line(task, 60)!r}"
                raise UserError(
                    f"{file}: id {one_line(name, 80)!r} is {where} of this report: correct or "
                    "remove it"
                )
            found.append(frozenset((t, name) for t in here))
        return found


def read_outcomes(folder: str, pair: str, ids: Iterable[str], need: str) -> Outcomes:
    """The outcomes of the examples with these ids.

    Args:
        folder: of the report; any fsspec path.
        pair: "old->compat" or another.
        ids: of any task.
        need: what asks for it, for the message.

    Raises:
        UserError: no examples.parquet, or not a whole one with this pair.
    """
    path, column = join(folder, EXAMPLES), pair.replace("->", "_")
    files, where = filesystem(path)
    try:
        with files.open(where, "rb") as file:
            parquet = pq.ParquetFile(file)
            if column not in parquet.schema_arrow.names:
                raise UserError(f"{path}: has no column {column!r}: {AGAIN}")
            table = parquet.read(columns=["task", "id", column])
    except FileNotFoundError:
        raise UserError(
            f"{need} needs {EXAMPLES} beside the report, and {folder} has none: "
            f"copy it there or {AGAIN}"
        ) from None
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = one_line(str(error), 200)
        raise UserError(f"{path}: is not a whole table of examples: {reason}") from None
    flips = pc.value_counts(table.column("task").filter(pc.equal(table.column(column), "negative")))
    chosen = pa.array(sorted(set(ids)), table.schema.field("id").type)
    rows = table.filter(pc.is_in(table.column("id"), value_set=chosen))
    tasks, names = rows.column("task").to_pylist(), rows.column("id").to_pylist()
    examples = [(str(t), str(i)) for t, i in zip(tasks, names, strict=True)]
    said = rows.column(column).to_pylist()
    return Outcomes(
        known=frozenset(examples),
        flipped=frozenset(e for e, o in zip(examples, said, strict=True) if o == "negative"),
        unscored=frozenset(
            e for e, o in zip(examples, said, strict=True) if o in (None, "unscored")
        ),
        right=frozenset(e for e, o in zip(examples, said, strict=True) if o in _RIGHT),
        negative={str(row["values"]): int(row["counts"]) for row in flips.to_pylist()},
    )
