"""One version's files, whatever they are, as one `Side` per task."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from muscle.errors import UserError
from muscle.inputs.asked import Asked
from muscle.inputs.building import listed
from muscle.inputs.own import is_own, own_side
from muscle.inputs.parquet import ParquetColumns
from muscle.inputs.plain import csv_sides, json_sides, parquet_sides
from muscle.inputs.sample_log import log_side
from muscle.inputs.source import Source, find_sources, is_folder
from muscle.side import Side


def open_sides(paths: str | Sequence[str], asked: Asked | None = None) -> dict[str, Side]:
    """One version's predictions: task -> side.

    Args:
        paths: a file or a folder, or several that together are one version. A path is
            local or any fsspec URL.
        asked: names of columns, metric, filter and tasks, where they aren't the default.

    Raises:
        UserError: whatever is wrong with a file, in one line that names it.
    """
    asked = asked or Asked()
    sides: dict[str, Side] = {}
    there: dict[str, None] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        sources = find_sources(path)
        named = is_folder(path)
        there |= dict.fromkeys(source.task for source in sources if source.task is not None)
        for side in _files(sources, asked, named):
            there.setdefault(side.task)
            if asked.tasks and side.task not in asked.tasks:
                continue
            if side.task in sides:
                raise UserError(
                    f"two files hold task '{side.task}': {sides[side.task].label} and {side.label}"
                )
            sides[side.task] = side
    for task in asked.tasks:
        if task not in sides:
            raise UserError(
                f"--task {task}: {paths} has no such task, only {listed(sorted(there))}"
            )
    return sides


def _files(sources: Sequence[Source], asked: Asked, named: bool) -> Iterable[Side]:
    """The sides of files; of a task's sample logs only the newest.

    Args:
        named: they are a folder's, where a plain file is a task of its own name.
    """
    newest: dict[str, Source] = {}
    older: dict[str, int] = {}
    for source in sources:
        task = source.task
        if task is None:
            yield from _sides(source, replace(asked, unnamed=source.stem) if named else asked)
        elif asked.tasks and task not in asked.tasks:
            continue
        elif task not in newest or source.stamp > newest[task].stamp:
            older[task] = older.get(task, -1) + 1
            newest[task] = source
        else:
            older[task] += 1
    for task, source in newest.items():
        yield log_side(source, asked, older[task])


def _sides(source: Source, asked: Asked) -> Iterable[Side]:
    if source.kind == "sample log":
        return [log_side(source, asked, 0)]
    if source.kind == "json lines":
        return json_sides(source, asked).values()
    if source.kind == "csv":
        return csv_sides(source, asked).values()
    columns = ParquetColumns(source.path)
    if is_own(columns):
        return [own_side(source, columns, asked)]
    return parquet_sides(source, columns, asked).values()
