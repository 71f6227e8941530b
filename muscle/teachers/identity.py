"""What a teacher's signal on disk must have been made of."""

import json
from collections.abc import Mapping
from typing import Any

from muscle.errors import UserError


def check_identity(what: str, there: Mapping[str, Any], mine: Mapping[str, Any], mend: str) -> None:
    """Refuse a signal that was made of something else.

    Args:
        what: it is, with its verb: "teacher cache PATH was".

    Raises:
        UserError: names the first difference.
    """
    mine = json.loads(json.dumps(dict(mine)))  # as `there` came from its file
    for name in [*mine, *sorted(there.keys() - mine.keys())]:
        check_same(what, name, there.get(name), mine.get(name), mend)


def check_same(what: str, name: str, there: Any, mine: Any, mend: str) -> None:
    """The same of one thing that it was made of."""
    if there != mine:
        raise UserError(f"{what} made of another {name}: {there!r} there and {mine!r} here: {mend}")
