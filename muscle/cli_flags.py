"""The flags of `muscle compare` and `muscle gate`."""

from typing import Annotated

import typer

Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="Plain files; see `--id`.")]
Id = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="COLUMN",
        help="How columns of plain files are called: ids (default id), right or wrong (correct), "
        "scores (score), answers (prediction), right answers (gold), questions (question), tasks.",
    ),
]
Slices = Annotated[
    list[str] | None,
    typer.Option("--slice", metavar="COLUMN[=VALUE]", help="These slices too; repeat."),
]
Groups = Annotated[
    list[str] | None, typer.Option(metavar="NAME=TASK,TASK", help="Tasks taken together; repeat.")
]
Only = Annotated[list[str] | None, typer.Option(help="Only this task; repeat.")]
Filter = Annotated[
    str | None, typer.Option("--filter", help="Sample logs: the harness's filter; default: first.")
]
Again = Annotated[
    str | None, typer.Option(metavar="OLD2", help="Old, trained again with another seed.")
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]OLDER", help="An older release, to see what is lost since; repeat."
    ),
]
Common = Annotated[
    bool, typer.Option("--common", help="Where the examples differ: compare those that all have.")
]
Texts = Annotated[
    str, typer.Option(help="Examples' texts: on the page, in all files, or none anywhere.")
]
Nfr = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Negative flip rate at most: 0.02 or 2%.")
]
Excess = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="NFR beyond the noise floor (two old seeds) at most."),
]
Relative = Annotated[
    str | None, typer.Option(metavar="SHARE", help="NFR / (acc1 (1 - acc2)) at most.")
]
Gain = Annotated[
    str | None, typer.Option(metavar="SHARE", help="Score gained at least; may be negative.")
]
MustKeep = Annotated[
    str | None, typer.Option(metavar="FILE", help="Ids that may not flip, one on each line.")
]
Waive = Annotated[
    str | None, typer.Option(metavar="FILE", help="YAML: flips allowed (id, reason, until).")
]
Pair = Annotated[
    str | None, typer.Option(help="What limits are for: old->compat if it is there, else old->new.")
]
