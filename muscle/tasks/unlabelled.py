"""Inputs of a task that nobody labelled: rows of a file, a split that judges nothing.

They are asked as the task asks its own. What its prompt doesn't read of a row, the right
answer above all, isn't taken from the row: a document of the task's own lends it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from muscle.errors import UserError
from muscle.tasks import asking
from muscle.tasks import examples as reading
from muscle.tasks.files import Row, read_rows
from muscle.tasks.task import Task
from muscle.tasks.tuning import evaluated_on, texts_of

POOL = 64
"""Rows of the task's own among which other values of a column are looked for."""

TRIES = 3
"""Other values of a column that are tried."""

Fields = dict[str, Any]


def on_file(task: Task, path: str, setting: str) -> Task:
    """A task, asked the rows of a JSONL(.gz) or Parquet file; of chats, the chats.

    Args:
        setting: that named the file, for messages.

    Raises:
        UserError: a file that can't be read, a row without a field that is asked.
    """
    if task.is_chat:
        from muscle.tasks.chat import ChatTask
        from muscle.tasks.chat_rows import read_unlabelled

        assert isinstance(task, ChatTask)
        return task.on_chats(read_unlabelled(task._config, path, setting), labelled=False)
    rows = read_rows(path, setting)
    places = [f"{path}, row {row.number}" for row in rows]
    if task._config.is_own:
        from muscle.tasks.own import unlabelled_dataset

        docs = unlabelled_dataset(task._config, rows, path)
    else:
        docs = _Reader(task, path).read(rows, places)
    ids = reading.row_ids([row.fields for row in rows], [str(row.number) for row in rows])
    return task.on_documents(docs, ids, places)


def on_validation_split(task: Task, setting: str) -> Task:
    """A task, asked its own validation split, whose right answers aren't read.

    Raises:
        UserError: it has none, is evaluated on it, or chooses epochs by it.
    """
    if task.is_chat and task._config.validation is not None:
        raise UserError(
            f"setting '{setting}': the validation file of task '{task.name}' chooses the epoch, "
            "so that nothing may be taught on it: leave the entry out"
        )
    if task.is_chat or not task._whole.has_validation_docs():
        raise UserError(
            f"setting '{setting}': task '{task.name}' has no validation split: "
            "leave the entry out, or name a file with path"
        )
    if not task._whole.has_test_docs():
        raise UserError(
            f"setting '{setting}': task '{task.name}' is evaluated on its validation split, which "
            "must not be taught: leave the entry out"
        )
    from muscle.tasks.harness import quiet

    with quiet():
        found = task._whole.validation_docs()
        rows = reading.empty_to_error(found, f"task '{task.name}': the validation split")
    places = [f"task '{task.name}', row {i + 1} of the validation split" for i in range(len(rows))]
    docs = found if hasattr(found, "select") else rows
    return task.on_documents(docs, reading.row_ids(rows), places)


def only(task: Task, rows: Sequence[int]) -> Task:
    """A task that `Task.on_documents` made, asked some of its documents, by place."""
    docs = task._harness.task_docs
    some = docs.select(rows) if hasattr(docs, "select") else [docs[row] for row in rows]
    ids = asked_ids(task)
    places = None if task._places is None else [task._places[row] for row in rows]
    return task.on_documents(some, [ids[row] for row in rows], places)


def asked_ids(task: Task) -> list[str]:
    """The ids of its documents, in their order."""
    assert task._ids is not None, "a task on other documents than its own"
    return task._ids


def asked_groups(task: Task) -> list[str | None]:
    """The group of each evaluation example, in their order: `task.group` of chats, else None."""
    docs, column = reading.documents(task._harness), task._config.group
    if column is None:
        return [None] * len(docs)
    from muscle.tasks.chat import ChatTask
    from muscle.tasks.chat_rows import group_of

    assert isinstance(task, ChatTask)
    chats = [task._chats["test"][doc["id"]] for doc in docs]
    return [None if chat.row.get(column) is None else group_of(chat, column) for chat in chats]


class _Reader:
    """Makes a harness task's documents of a file's rows, which have the columns of its data.

    Which columns are asked shows when their values are exchanged: the harness's templates and
    the functions that prepare its documents may read any.
    """

    def __init__(self, task: Task, path: str) -> None:
        from lm_eval.api.task import ConfigurableTask

        self.name, self.path, self.harness = task.name, path, task._whole
        if not isinstance(self.harness, ConfigurableTask):
            raise UserError(
                f"{path}: task '{self.name}' is written in Python and loads its own data, so that "
                "rows of a file can't be asked: leave the file out"
            )
        config = self.harness.config
        split = config.training_split or config.test_split or config.validation_split
        self.own = self.harness.dataset[split]
        # From all over the split, which may be sorted.
        step = max(1, len(self.own) // POOL)
        self.pool = [dict(self.own[i]) for i in range(0, len(self.own), step)][:POOL]
        self.columns = list(self.pool[0])

    def read(self, rows: Sequence[Row], places: Sequence[str]) -> Any:
        """The documents, one for each row.

        Raises:
            UserError: a row without a column that is asked, with a value of another type, or
                that the task can't prepare.
        """
        asked = self.asked_columns(rows)
        while True:
            kept = [self._kept(row, asked, place) for row, place in zip(rows, places, strict=True)]
            made = self._made(kept, asked, places)
            hidden = self._hidden(kept, made, asked)
            if hidden is None:
                return made[0][1]
            number, column = hidden
            if rows[number].fields.get(column) is None:
                raise self._lacks(rows[number], column, places[number])
            asked.add(column)

    def asked_columns(self, rows: Sequence[Row] = ()) -> set[str]:
        """The columns of the task's data that change what is asked of the first documents, be it
        by values of these rows."""
        asked = ((row, self._try(row)) for row in self.pool)
        bases = list(islice(((row, text) for row, text in asked if text is not None), 2))
        return {name for name in self.columns if not bases or self._changes(name, bases, rows)}

    def _changes(
        self, column: str, bases: Sequence[tuple[Fields, list[Any]]], rows: Sequence[Row]
    ) -> bool:
        tried = told = False
        for base, before in bases:
            for value in self._others(column, base[column], rows):
                after = self._try({**base, column: value})
                if after is not None and after != before:
                    return True
                tried, told = True, told or after is not None
        # A value that can't stand here (an answer that isn't among the choices) tells nothing,
        # unless none can.
        return tried and not told

    def _others(self, column: str, value: Any, rows: Sequence[Row]) -> list[Any]:
        """Some values of a column that differ from one: the task's own, made up where it has no
        others, and the rows'."""
        found = _different([row[column] for row in self.pool], value)
        if not found and isinstance(value, str):
            found = [f"{value} or not"]
        elif not found and isinstance(value, bool):
            found = [not value]
        elif not found and isinstance(value, int | float):
            found = [value + 1, value - 1]
        given = (row.fields.get(column) for row in rows)
        return found + _different([other for other in given if other is not None], value)

    def _try(self, row: Fields) -> list[Any] | None:
        """What one row asks; None where it can't stand so."""
        from muscle.tasks.harness import quiet

        try:
            with quiet():
                docs = self._documents([row])
                return list(self._texts(docs)) if len(docs) == 1 else None
        except Exception:  # a task's own code, on a row that isn't its own
            return None

    def _documents(self, rows: Sequence[Fields]) -> Any:
        import datasets
        import pyarrow as pa

        features = getattr(self.own, "features", None)
        if features is None:
            docs = datasets.Dataset.from_list(list(rows))
        else:
            # Not `from_list`, which makes a text of whatever stands where one belongs.
            table = pa.Table.from_pylist(list(rows), schema=features.arrow_schema)
            docs = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
        process = self.harness.config.process_docs
        return docs if process is None else process(docs)

    def _texts(self, docs: Any) -> Iterator[Any]:
        """What each document asks, without shots."""
        task = evaluated_on(self.harness, docs, labelled=False)
        for doc in docs:
            prefix = task.doc_to_prefix(doc)
            context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=prefix)
            made = task.construct_requests(doc=doc, ctx=context, metadata=(self.name, 0, 1))
            instances = made if isinstance(made, list) else [made]
            yield texts_of(task, doc), [instance.args for instance in instances]

    def _kept(self, row: Row, asked: set[str], place: str) -> Fields:
        """A row's values of the columns that are asked."""
        for column in self.columns:
            if column in asked and row.fields.get(column) is None:
                if all(own[column] is not None for own in self.pool):
                    raise self._lacks(row, column, place)
        return {name: row.fields.get(name) for name in self.columns if name in asked}

    def _lacks(self, row: Row, column: str, place: str) -> UserError:
        what = "is null" if column in row.fields else "is missing"
        return UserError(
            f"{place}: field '{column}' {what}, which task '{self.name}' asks "
            f"(fields: {', '.join(row.fields)})"
        )

    def _made(
        self, kept: Sequence[Fields], asked: set[str], places: Sequence[str]
    ) -> list[tuple[Fields, Any, list[Any]]]:
        """Up to two ways to make all documents, with other values in the place of what isn't
        asked: (these values, the documents, what they ask)."""
        from muscle.tasks.harness import quiet

        found: list[tuple[Fields, Any, list[Any]]] = []
        failure: Exception | None = None
        for lent in self._lent(asked):
            try:
                with quiet():
                    docs = self._documents([{**lent, **fields} for fields in kept])
                    texts = list(self._texts(docs))
            except Exception as error:
                failure = failure or error
                continue
            if len(docs) != len(kept):
                raise UserError(
                    f"{self.path}: task '{self.name}' keeps {len(docs)} of its {len(kept)} rows: "
                    "take those out that it doesn't ask"
                )
            found.append((lent, docs, texts))
            if len(found) == 2:
                break
        if found:
            return found
        assert failure is not None
        raise self._at_fault(kept, asked, places, failure)

    def _lent(self, asked: set[str]) -> list[Fields]:
        """What a few different documents of the task's own have in the other columns."""
        found: list[Fields] = []
        for row in self.pool:
            lent = {name: value for name, value in row.items() if name not in asked}
            if lent not in found:
                found.append(lent)
        # The first differ from each other in as much as they can.
        first = found[0]
        found[1:] = sorted(found[1:], key=lambda other: sum(other[n] == first[n] for n in first))
        return found[: TRIES + 1]

    def _hidden(
        self, kept: Sequence[Fields], made: Sequence[tuple[Fields, Any, list[Any]]], asked: set[str]
    ) -> tuple[int, str] | None:
        """(row, column) of a column that only some rows ask, so that it was overlooked."""
        if len(made) < 2:
            return None
        (first, _, before), (second, _, after) = made
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            if one == other:
                continue
            for column in (name for name in self.columns if name not in asked):
                row = {**first, **kept[number]}
                if self._try({**row, column: second[column]}) != self._try(row):
                    return number, column
        return None

    def _at_fault(
        self, kept: Sequence[Fields], asked: set[str], places: Sequence[str], failure: Exception
    ) -> UserError:
        """The first row that can't be made a document, in words."""
        lent = self._lent(asked)
        for fields, place in zip(kept, places, strict=True):
            if all(self._try({**one, **fields}) is None for one in lent):
                return UserError(
                    f"{place}: doesn't fit task '{self.name}', whose rows have "
                    f"{', '.join(self.columns)}: {asking.reason(failure)}"
                )
        return UserError(f"{self.path}: doesn't fit task '{self.name}': {asking.reason(failure)}")


def _different(values: Sequence[Any], value: Any) -> list[Any]:
    """The first few values that differ from one and from each other."""
    found: list[Any] = []
    for other in values:
        if len(found) == TRIES:
            break
        if other != value and other not in found:
            found.append(other)
    return found
