"""Doing steps: which are missing, whose turn it is, and leaving an artifact for each."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from muscle import storage
from muscle.artifacts import Artifact, Store
from muscle.plan import Step
from muscle.training.job import OnProgress, Progress


class Workshop:
    """A store of artifacts in which steps are done, by one driver at a time."""

    def __init__(self, store: Store, on_progress: OnProgress):
        self.store = store
        self.on_progress = on_progress

    def missing(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that have no artifact yet."""
        return [s for s in steps if self.store.find(s.kind, s.key) is None]

    def artifact(self, step: Step) -> Artifact:
        """The artifact of a step that was done."""
        found = self.store.find(step.kind, step.key)
        assert found is not None, f"{step.label} has no artifact"
        return found

    @contextmanager
    def leases(
        self, steps: Sequence[Step], on_wait: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Hold the leases of all steps; always taken in one order, so no two drivers deadlock.

        on_wait: told who holds one of them, before it is waited for; may raise instead.
        """
        with ExitStack() as stack:
            for step in sorted(steps, key=lambda s: (s.kind, s.key)):
                waiting = on_wait or partial(self._waiting, step)
                stack.enter_context(self.store.lease(step.kind, step.key, waiting))
            yield

    @contextmanager
    def taking(self, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Hold the leases of the steps that are missing; those that still are, once they are
        held, since another driver may have been at them."""
        missing = self.missing(steps)
        with self.leases(missing):
            yield self.missing(missing)

    def once(self, step: Step, make: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The artifact of a step that runs here, on the driver: found, or made."""
        found = self.store.find(step.kind, step.key)
        if found is not None:
            return found
        with self.leases([step]):
            found = self.store.find(step.kind, step.key)
            return found if found is not None else self.make(step, make)

    def make(self, step: Step, make: Callable[[Path], dict[str, Any]]) -> Artifact:
        """Commit what `make` writes into a folder, with the notes that it returns."""
        attempt = self.store.new_attempt(step.kind, step.key)
        with tempfile.TemporaryDirectory() as temporary:
            notes = make(Path(temporary))
            storage.upload(Path(temporary), attempt)
        return self.store.commit(step.kind, step.key, attempt, step.inputs, notes)

    def _waiting(self, step: Step, holder: str) -> None:
        self.on_progress(Progress(step.label, 0, 1, "steps", f"waits for another run ({holder})"))
