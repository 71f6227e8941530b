"""A task becomes training examples and evaluation requests, and judges the answers.

`load_task` is the door to one task, `load_suite` also to groups of them. What a task asks
and what counts as right is decided by lm-evaluation-harness, also for the user's own
files: we render its prompts, carry them to our engines and hand the outputs back to its
filters and metrics.

The harness takes seconds to import, so everything here imports it inside functions.
"""

from muscle.tasks.judge import Judged
from muscle.tasks.prompting import Prompting
from muscle.tasks.split import fold, hold_out, limit_examples, limit_ids, split
from muscle.tasks.suite import Group, GroupMetric, Suite, load_suite
from muscle.tasks.task import Task, load_task

__all__ = [
    "Group",
    "GroupMetric",
    "Judged",
    "Prompting",
    "Suite",
    "Task",
    "fold",
    "hold_out",
    "limit_examples",
    "limit_ids",
    "load_suite",
    "load_task",
    "split",
]
