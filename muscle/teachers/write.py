"""Teachers' final hidden states of the training tokens, computed and written shard by shard.

A batch never crosses a shard's border, so a shard's content doesn't depend on which worker
makes it, or on which others were made before.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from muscle import copies, storage
from muscle.errors import UserError
from muscle.models.adapters import attach_adapter, head_is_adapted, using_adapter
from muscle.models.compatibility import check_adapter
from muscle.models.head import head_of, save_head
from muscle.models.load import load_base, load_tokenizer, torch_dtype
from muscle.models.sequences import Batch, collate, micro_batches, tokenise
from muscle.models.structure import check_structure, hidden_states
from muscle.tables import read_examples
from muscle.teachers.job import TeacherAsk, TeacherBase, TeacherJob
from muscle.teachers.shards import HEAD, Unit, whole, write_piece

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward by kind of device, where the job doesn't say."""


class Writer:
    """One base with all adapters of its asks, loaded once; writes units of its caches.

    Raises:
        UserError: a base, tokenizer, adapter or examples that can't be read; an adapter that
            changes the head, so that no frozen head could read its hidden states.
    """

    def __init__(self, base: TeacherBase, job: TeacherJob, device: str | None = None):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        name, revision = base.base.model, base.base.revision
        tokenizer = load_tokenizer(name, revision)
        self.base, self.job = base, job
        self.examples = read_examples(storage.join(base.examples or job.examples, "train.parquet"))
        self.data = tokenise(self.examples, tokenizer, job.max_length, job.loss_on)
        self.fingerprint = self.data.fingerprint()
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.dtype = torch_dtype(job.dtype)
        self.model: Any = load_base(name, revision, job.dtype, device)
        check_structure(self.model)
        self.hidden_size = int(self.model.get_output_embeddings().weight.shape[1])
        for number, ask in enumerate(base.asks):
            path = copies.fetch(ask.adapter)
            check_adapter(path, name, None, self.model.config)
            self.model = attach_adapter(self.model, path, _adapter(number))
        if base.asks and head_is_adapted(self.model):
            raise UserError(f"an adapter of {name!r} changes the output head: leave it frozen")
        self.model.eval()
        self.tokens = job.tokens or TOKENS[self.model.device.type]

    def write(self, unit: Unit) -> int:
        """Make a unit unless it is there and whole; returns how many sequences it has.

        Raises:
            UserError: hidden states that aren't finite, a batch that doesn't fit the device,
                a full disk. Nothing half-written counts.
        """
        number, shard = unit
        ask = self.base.asks[number]
        if shard == HEAD:
            if not whole(self.job, ask, HEAD):
                self._write(ask, HEAD, self._head(), 0, 0)
            return 0
        size = self.job.shard_sequences
        indices = range(shard * size, min(len(self.data), (shard + 1) * size))
        if not whole(self.job, ask, shard):
            hidden_ND = self.hidden(number, indices)
            data = save({"hidden": hidden_ND})
            self._write(ask, shard, data, len(indices), len(hidden_ND))
        return len(indices)

    def hidden(self, number: int, indices: Sequence[int]) -> Tensor:
        """The final hidden states under one ask's adapter at the positions in the loss.

        [targets of all `indices`, D] in the order of `indices`, in the job's dtype, on the CPU.
        """
        found: dict[int, Tensor] = {}
        with torch.no_grad(), using_adapter(self.model, _adapter(number)):
            for rows in micro_batches(self.data, indices, self.tokens):
                batch = collate(self.data, rows, self.pad).to(self.model.device)
                hidden_ND = self._forward(batch).to(self.dtype)
                self._check_finite(hidden_ND, batch, rows, self.base.asks[number])
                parts = hidden_ND.cpu().split([self.data.targets(i) for i in rows])
                found.update(zip(rows, parts, strict=True))
        return torch.cat([found[i] for i in indices])

    def _forward(self, batch: Batch) -> Tensor:
        try:
            hidden_BLD = hidden_states(self.model, batch.input_ids, batch.attention_mask)
        except torch.OutOfMemoryError:
            rows, longest = batch.input_ids.shape
            raise UserError(
                f"teacher {self.base.base.model!r}: a forward of {rows} x {longest} tokens doesn't "
                f"fit this device (the budget is {self.tokens}): lower resources.scoring_tokens"
            ) from None
        return hidden_BLD[:, :-1][batch.scored]

    def _check_finite(
        self, hidden_ND: Tensor, batch: Batch, rows: Sequence[int], ask: TeacherAsk
    ) -> None:
        finite_N = hidden_ND.isfinite().all(dim=1)
        if bool(finite_N.all()):
            return
        first = int(batch.sequence[int((~finite_N).nonzero()[0])])
        raise UserError(
            f"teacher {ask.name!r} ({self.base.base.model!r} with {ask.adapter!r}): its hidden "
            f"states of training example {self.examples[rows[first]].id!r} hold NaN or infinity "
            f"in {self.job.dtype}: set training.dtype to float32, or train the adapter again"
        )

    def _head(self) -> bytes:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "head.safetensors"
            try:
                save_head(head_of(self.model), str(path))
                return path.read_bytes()
            except (OSError, SafetensorError) as error:
                raise UserError(f"no room for the head in {temporary}: {error}") from None

    def _write(self, ask: TeacherAsk, shard: int, data: bytes, sequences: int, tokens: int) -> None:
        counts = {
            "sequences": sequences,
            "tokens": tokens,
            "hidden_size": self.hidden_size,
            "data": self.fingerprint,
        }
        write_piece(self.job, ask, shard, data, counts)


def _adapter(number: int) -> str:
    # What a user calls a version may hold a dot, which PEFT's names can't.
    return f"teacher{number}"
