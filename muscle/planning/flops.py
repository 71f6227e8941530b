"""Floating point operations, from the models' own shapes.

For T padded tokens, P multiply-adds of a token in the frozen linear layers, p in LoRA's,
N positions in the loss, D the hidden size, V the vocabulary, A = heads x their size:

    linear layers, forward            2 (P + p) T       Kaplan et al. 2020, §2.1
    gradient of the activations       2 (P + p) T       the frozen base has no weight gradient
    gradient of LoRA's weights        2 p T             so LoRA costs 6 p T in all
    gradient checkpointing            the forward again  Chen et al. 2016
    attention, forward                4 A sum(L^2) a layer: two products, padded and unmasked
                                      halves included, as kernels with a mask run them
    attention, backward               10 A sum(L^2): five products, one of them recomputed
                                      (Dao 2023, FlashAttention-2, §3.1)
    head and loss                     4 N D V           logits, and the gradient they send back
    a teacher's head                  2 N D V

The first block's input needs no gradient, which is left out: at most one part in twice
the number of layers too much.
"""

from muscle.planning.meta import MetaModel
from muscle.planning.work import Work


def body_forward(model: MetaModel, tokens: int, squares: int, adapter: bool = True) -> float:
    """FLOPs from tokens to final hidden states; `squares` is the sum of L^2 over rows."""
    linear = model.linear + (model.adapter if adapter else 0)
    return 2.0 * linear * tokens + 4.0 * model.attention_width * model.layers * squares


def head_forward(model: MetaModel, scored: int) -> float:
    """FLOPs of the logits of `scored` positions."""
    return 2.0 * scored * model.hidden * model.vocabulary


def training_pass(model: MetaModel, work: Work, checkpointing: bool) -> float:
    """FLOPs of one pass over `work` with forward, loss and backward."""
    forward = body_forward(model, work.tokens, work.squares)
    backward = (
        2.0 * (model.linear + 2 * model.adapter) * work.tokens
        + 10.0 * model.attention_width * model.layers * work.squares
    )
    recomputed = forward if checkpointing else 0.0
    return forward + backward + recomputed + 2 * head_forward(model, work.scored)


def forward_pass(model: MetaModel, work: Work, head: bool) -> float:
    """FLOPs of one pass without gradient: validation (with the head), a teacher (without)."""
    body = body_forward(model, work.tokens, work.squares)
    return body + (head_forward(model, work.scored) if head else 0.0)
