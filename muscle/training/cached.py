"""The cached teachers of a training: checked, read in the order of training, and let go."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor

from muscle.models.head import load_head
from muscle.models.sequences import Rows, Sequences
from muscle.teachers.cache import open_cache
from muscle.teachers.staging import check_room
from muscle.training.job import TrainJob
from muscle.training.student import Student


class CachedTeachers:
    """A job's teacher caches, open; none for a job without. A context manager.

    Questions have none: their teachers' scores are a part of the data.

    Raises:
        UserError: a cache that isn't whole, or was made of something else.
    """

    def __init__(self, job: TrainJob, data: Rows):
        self._stack = ExitStack()
        with ExitStack() as opened:  # a second one that fails closes the first
            self.caches = {
                name: opened.enter_context(
                    open_cache(teacher.path, teacher.identity, data, job.training.dtype)
                )
                for name, teacher in job.teachers.items()
                if isinstance(data, Sequences)
            }
            check_room([cache.place for cache in self.caches.values()])
            self._stack = opened.pop_all()

    def __enter__(self) -> "CachedTeachers":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def give_heads(self, student: Student, device: str) -> None:
        """Hand the old teacher's head over; new's is the student's own."""
        if "old" in self.caches:
            student.use_old_head(load_head(self.caches["old"].head_path(), device))

    def attach(self, rows: Sequence[int]) -> Mapping[str, Tensor]:
        """The signals of training sequences: {name: hidden [N, D]}, N as `collate`'s."""
        return {name: cache.read(rows) for name, cache in self.caches.items()}

    def ahead(self, rows: Sequence[int]) -> None:
        """Tell the caches what will be read, in order."""
        for cache in self.caches.values():
            cache.ahead(rows)
