"""Text to tokens exactly as lm-evaluation-harness's HFLM does it, for many texts at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from muscle.types import Request

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Pair:
    """A scored sequence: the tokens conditioned on, and the tokens whose probability counts."""

    context: list[int]
    continuation: list[int]


class Encoder:
    """A tokenizer with the harness's rules about special tokens, trailing spaces and BOS."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prefix_id: int | None = bos if bos is not None else eos
        self._prefix_text: str | None = (
            None if self.prefix_id is None else tokenizer.decode(self.prefix_id)
        )

    def pairs(self, texts: Sequence[tuple[str, str]]) -> "list[Pair | str]":
        """One `Pair` for each (context, continuation), or why there is none, as a phrase.

        Trailing spaces of the context move to the continuation, the joined text is
        encoded once and cut at the length of the encoded context, so a token that spans
        the join belongs to the continuation. An empty context is the prefix token (BOS,
        else EOS).
        """
        moved = [move_spaces(context, continuation) for context, continuation in texts]
        with_special = _unique(
            text
            for (original, _), (context, rest) in zip(texts, moved, strict=True)
            if original
            for text in (context + rest, context)
        )
        plain = _unique(rest for original, rest in texts if not original)
        ids = dict(zip(with_special, self._encode(with_special, self._prefix_text), strict=True))
        plain_ids = dict(zip(plain, self._call(plain, special=False), strict=True))
        found: list[Pair | str] = []
        for (original, continuation), (context, rest) in zip(texts, moved, strict=True):
            if not continuation:
                # With a trailing space in the context the harness would score that space.
                found.append("the continuation is empty")
                continue
            if original:
                start = ids[context]
                pair = Pair(start, ids[context + rest][len(start) :])
            elif self.prefix_id is None:
                found.append("the context is empty and the tokenizer has no BOS or EOS")
                continue
            else:
                pair = self._after_prefix(plain_ids[rest])
            if not pair.continuation:
                found.append("the continuation has no tokens")
            elif not pair.context:
                found.append("the context has no tokens")
            else:
                found.append(pair)
        return found

    def scored(self, requests: Sequence[Request], chats: Sequence[bool]) -> "list[Pair | str]":
        """`chat_pairs` of those requests that are chats, `pairs` of the others, in their order."""
        texts = [(r.context, r.continuation) for r in requests]
        pairs = _by_kind(texts, chats, self.chat_pairs, self.pairs)
        return [
            self._ended(pair) if request.kind == "loglikelihood_to_end" else pair
            for request, pair in zip(requests, pairs, strict=True)
        ]

    def _ended(self, pair: "Pair | str") -> "Pair | str":
        if isinstance(pair, str):
            return pair
        if (eos := self.tokenizer.eos_token_id) is None:
            return "the tokenizer has no EOS to end an answer with"
        return Pair(pair.context, [*pair.continuation, int(eos)])

    def begun(self, texts: Sequence[str], chats: Sequence[bool]) -> list[list[int]]:
        """The tokens of each context to generate from, of chats and of plain text."""
        return _by_kind(texts, chats, self.chats, self.contexts)

    def chat_pairs(self, texts: Sequence[tuple[str, str]]) -> "list[Pair | str]":
        """One `Pair` for each (rendered chat, what the model is to write), or why there is none.

        The chat's special tokens stand in its text, so none is added. Its tokens are those
        that a model is given, whatever follows: what follows is what the joined text has beyond
        them or, where the two would melt into one token, is encoded by itself.
        """
        joined = _unique(context + rest for context, rest in texts)
        alone = _unique(text for pair in texts for text in pair if text)
        ids = dict(
            zip([*joined, *alone], self._call([*joined, *alone], special=False), strict=True)
        )
        found: list[Pair | str] = []
        for context, rest in texts:
            if not context or not ids[context]:
                found.append("the chat has no tokens")
                continue
            start, whole = ids[context], ids[context + rest]
            apart = whole[: len(start)] != start or len(whole) == len(start)
            continuation = (ids[rest] if rest else []) if apart else whole[len(start) :]
            if continuation:
                found.append(Pair(start, continuation))
            else:
                found.append("the continuation is empty")
        return found

    def pieces(self, chats: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The tokens of each chat's pieces, each as it follows all before it: `chat_pairs` again
        and again. Joined they are what a model would have read and written, piece by piece."""
        joined = [["".join(chat[: n + 1]) for n in range(len(chat))] for chat in chats]
        every = _unique(text for texts in joined for text in texts)
        ids = dict(zip(every, self._call(every, special=False), strict=True))
        found = []
        for chat, texts in zip(chats, joined, strict=True):
            before: list[int] = []
            parts: list[list[int]] = []
            for piece, text in zip(chat, texts, strict=True):
                whole = ids[text]
                apart = whole[: len(before)] != before
                part = self._call([piece], special=False)[0] if apart else whole[len(before) :]
                parts.append(part)
                before = before + part
            found.append(parts)
        return found

    def chats(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each rendered chat, to generate from; nothing is added."""
        unique = _unique(texts)
        ids = dict(zip(unique, self._call(unique, special=False), strict=True))
        return [ids[text] for text in texts]

    def windows(self, texts: Sequence[str], max_length: int) -> "list[list[Pair] | str]":
        """Each document as pairs that score every token of it once, or why not, as a phrase.

        The first window begins with the prefix token (BOS, else EOS), each further one
        with the last token of the one before; the last window gets a longer context, up to
        `max_length` tokens run. Special tokens are the tokenizer's defaults, so BOS is
        itself scored where the tokenizer puts it, as in the harness.
        """
        unique = _unique(texts)
        ids = dict(zip(unique, self._encode(unique, self._prefix_text), strict=True))
        found: list[list[Pair] | str] = []
        for text in texts:
            if not text or not ids[text]:
                found.append("the document has no tokens")
            elif self.prefix_id is None:
                found.append("the tokenizer has no BOS or EOS to begin a document with")
            else:
                found.append(rolling_windows(ids[text], self.prefix_id, max_length))
        return found

    def contexts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each context to generate from, untruncated; BOS is never doubled."""
        bos = getattr(self.tokenizer, "bos_token", None)
        unique = _unique(texts)
        ids = dict(zip(unique, self._encode(unique, bos), strict=True))
        return [ids[text] for text in texts]

    def _after_prefix(self, rest: list[int]) -> Pair:
        """An empty context: the prefix token, unless the continuation brings its own."""
        assert self.prefix_id is not None
        if rest and rest[0] == self.prefix_id:
            return Pair(rest[:1], rest[1:])
        return Pair([self.prefix_id], rest)

    def _encode(self, texts: Sequence[str], prefix: str | None) -> list[list[int]]:
        """The tokenizer's default special tokens, but none on a text that begins with BOS."""
        has = [prefix is not None and text.startswith(prefix) for text in texts]
        bare = iter(self._call([t for t, h in zip(texts, has, strict=True) if h], special=False))
        full = iter(self._call([t for t, h in zip(texts, has, strict=True) if not h]))
        return [next(bare) if h else next(full) for h in has]

    def _call(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            verbose=False,  # no warning about length: truncation is ours
        )
        return [list(ids) for ids in encoded["input_ids"]]


def rolling_windows(tokens: list[int], prefix: int, max_length: int) -> list[Pair]:
    """The windows of `Encoder.windows` for one tokenized document.

    The arithmetic of lm_eval's `get_rolling_token_windows` with context_len 1, made
    disjoint: a window runs at most `max_length` tokens and predicts at most as many.
    """
    pairs = [Pair([prefix], tokens[:max_length])]
    for low in range(max_length, len(tokens), max_length):
        high = min(low + max_length, len(tokens))
        pairs.append(Pair(tokens[max(0, high - max_length - 1) : low], tokens[low:high]))
    return pairs


def _by_kind(
    texts: Sequence[T],
    chats: Sequence[bool],
    chat: Callable[[list[T]], list[R]],
    plain: Callable[[list[T]], list[R]],
) -> list[R]:
    of_chats = iter(chat([text for text, is_chat in zip(texts, chats, strict=True) if is_chat]))
    others = iter(plain([text for text, is_chat in zip(texts, chats, strict=True) if not is_chat]))
    return [next(of_chats if is_chat else others) for is_chat in chats]


def move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """The harness's rule: trailing spaces of the context count to the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
