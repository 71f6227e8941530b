"""The order of training: which sequences make up which update.

An epoch is a permutation of (seed, epoch) and does not know the number of workers; an
update is a number of examples, and its micro-batches are filled by tokens.
"""

import numpy as np


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, from (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def updates(size: int, update_size: int) -> list[slice]:
    """The slices of an epoch's permutation that make one optimizer update each."""
    return [slice(i, min(i + update_size, size)) for i in range(0, size, update_size)]
