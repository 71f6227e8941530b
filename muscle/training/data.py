"""What a job trains on: token sequences, or questions with their teachers' scores."""

from typing import Any

from muscle import storage
from muscle.errors import UserError, some
from muscle.losses.needs import needed_teachers
from muscle.models.load import load_tokenizer
from muscle.models.sequences import Rows, Sequences, tokenise
from muscle.question_tables import read_questions
from muscle.tables import read_examples
from muscle.teachers.scores import read_scores
from muscle.training.batches import Split
from muscle.training.job import TrainJob
from muscle.training.questions import ChoiceData, choice_data


def read_splits(job: TrainJob, tokenizer: Any, tree: bool) -> dict[Split, Rows]:
    """Both splits of a job.

    Args:
        tree: whether the student takes a tree of answers; of no meaning to sequences.

    Raises:
        UserError: nothing there, something that has no tokens, a teacher's scores that are
            missing, damaged or of something else.
    """
    if job.questions is not None:
        return _questions(job, job.questions, tokenizer, tree)
    return {
        "train": _tokens(job, "train", tokenizer),
        "validation": _tokens(job, "validation", tokenizer),
    }


def for_old(job: TrainJob, data: Rows) -> tuple[Sequences, int] | None:
    """What an old teacher beside the student reads, and its padding; None: what the student reads.

    Raises:
        UserError: it isn't the same answers.
    """
    if job.old is None or job.old_examples is None or not isinstance(data, Sequences):
        return None
    tokenizer = load_tokenizer(job.old.model, job.old.revision)
    examples = read_examples(storage.join(job.old_examples, "train.parquet"))
    old = tokenise(examples, tokenizer, job.training.max_length, job.training.loss_on)
    if old.fingerprint() != data.fingerprint():
        raise UserError(
            f"training {job.role}: old's chats in {job.old_examples} are not those of "
            f"{job.examples}: delete both folders and run again"
        )
    return old, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def left_out(data: Rows) -> str | None:
    """Which questions can't teach, for the user; None where all do."""
    names = data.left_out if isinstance(data, ChoiceData) else ()
    if not names:
        return None
    return f"{len(names)} inputs teach nothing, a teacher has no scores of them ({some(names)})"


def _tokens(job: TrainJob, split: Split, tokenizer: Any) -> Sequences:
    examples = read_examples(storage.join(job.examples, f"{split}.parquet"))
    return tokenise(examples, tokenizer, job.training.max_length, job.training.loss_on)


def _questions(job: TrainJob, folder: str, tokenizer: Any, tree: bool) -> dict[Split, Rows]:
    loss = job.loss
    assert loss is not None and loss.length_normalised is not None, "resolved by the plan"
    scores = {
        str(name): read_scores(job.teachers[name].path, job.teachers[name].identity)
        for name in needed_teachers(loss)
    }

    def split(name: Split) -> Rows:
        questions = read_questions(storage.join(folder, f"{name}.parquet"))
        length = job.training.max_length
        return choice_data(questions, tokenizer, length, scores, bool(loss.length_normalised), tree)

    return {"train": split("train"), "validation": split("validation")}
