"""What the user says about input files: which columns, metric, filter and tasks."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Columns:
    """How the columns of a plain file are called; other kinds of files name their own.

    id        the example's name; "id" where not given
    correct   a column of true/false or 1/0
    score     a column of real numbers, more is better. Where neither is given: the first
              of "score" and "correct" that is there
    answer, gold, question  texts; where not given "prediction", "gold" and "question", if
              the file has such columns
    task      the column that says which task a row is of; None: a file is one task
    """

    id: str | None = None
    correct: str | None = None
    score: str | None = None
    answer: str | None = None
    gold: str | None = None
    question: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted of the files of one version.

    metric, filter  None: the file's own, or its first
    tasks    only these; empty: all that are there
    unnamed  what a task is called that neither the file's content nor its name says
    """

    columns: Columns = field(default_factory=Columns)
    metric: str | None = None
    filter: str | None = None
    tasks: tuple[str, ...] = ()
    unnamed: str = "examples"
