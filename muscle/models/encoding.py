"""Text to tokens, split where lm-evaluation-harness splits it."""

from typing import Any


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of its continuation, as the harness's `_encode_pair`.

    Trailing spaces of the context move to the continuation; the joined text is encoded
    with the tokenizer's own special tokens (no second BOS where the text has one) and
    split at the length of the encoded context. The context may be empty: its ids are
    then only the special tokens that the tokenizer puts first, possibly none.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    # Where the text itself begins with BOS the tokenizer must not add another.
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and (stripped + continuation).startswith(bos))
    whole = tokenizer.encode(stripped + continuation, add_special_tokens=special)
    size = len(tokenizer.encode(stripped, add_special_tokens=special)) if stripped else 0
    if not stripped and special and whole and whole[0] == tokenizer.bos_token_id:
        size = 1
    return list(whole[:size]), list(whole[size:])


def prefix_token(tokenizer: Any) -> int:
    """The token that stands for an empty context: BOS, else EOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has neither a BOS nor an EOS token")
