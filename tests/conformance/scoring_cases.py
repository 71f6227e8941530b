"""Multiple-choice questions that have broken scorers: name -> questions of one call."""

from oracle import choices

CAPITAL = "Question: What is the capital of France?\nAnswer:"
LONG = "the quick brown fox and the lazy dog " * 12  # longer than the window
FOX = " jumps over the lazy dog"

Questions = list[list[tuple[str, str]]]

CASES: dict[str, Questions] = {
    "plain": [choices(CAPITAL, " Paris", " the dog", " 12345")],
    "trailing-space": [choices(CAPITAL + " ", "Paris", "the dog")],
    "trailing-white-space": [choices("Question:  \n\t ", " the", "the", "fox")],
    "trailing-no-break-space": [choices("The fox\u00a0\u3000", "jumps", " jumps")],
    "only-white-space": [choices("  ", "The fox", " The dog")],
    "empty-context": [choices("", "The fox", "The dog", " The dog")],
    "empty-context-and-its-own-bos": [choices("", "<s>The fox", "The fox")],
    "bos-already-there": [choices("<s>The fox", FOX, " and"), choices("The fox", FOX, " and")],
    "eos-in-the-text": [choices("The fox</s>", FOX, "</s>", " and</s>")],
    # Context and choice make one token that the context alone does not have.
    "token-spans-the-join": [
        choices("What is the cap", "ital of France", "ital of the dog", " is", "itals of"),
        choices("The sta", "tion. The dog", " is"),
    ],
    "token-spans-the-join-of-some-choices": [
        choices("The ju", "mps over the", " mps", "mping", "ice")
    ],
    "one-token-choices": [choices("The", " dog", " fo", " lazy", " the", "!")],
    "one-token-context": [choices("<s>", "The fox", "The dog", "T")],
    "one-choice-a-prefix-of-another": [
        choices("The fox", " and", " and the", " and the dog", " and the dog sleeps")
    ],
    "a-choice-that-is-the-next-context": [
        choices("The fox", " and the dog"),
        choices("The fox and", " the dog"),  # the same tokens, another split
        choices("The fox and the", " dog", " sun"),
    ],
    "same-tokens-other-splits": [[("The quick", " brown fox"), ("The quick brown", " fox")]],
    "identical-choices": [choices("The fox", " and", " and", FOX, " and")],
    "duplicated-requests": [choices("The fox", " and", FOX)] * 3,
    "one-choice": [choices("The fox", FOX)],
    "many-choices": [choices("The fox", *(f" {n} + {n * n}" for n in range(40)))],
    "shared-first-tokens": [choices("To open a jar,", *(f" turn the lid{e}" for e in "!;:,.?"))],
    "unequal-choices": [choices("The dog", " a", " sleeps in the sun" * 5, "!")],
    "non-ascii": [choices("naïve café ½ ２", " Übung", " 日本", " 👩‍👩‍👧", " U\u0308bung")],
    "bytes-of-one-character-span-the-join": [choices("日", "本", "\u0301", "️")],
    "shared-few-shots": [
        choices(f"Q: 1 + 1\nA: 2\n\nQ: 2 + 2\nA: 4\n\nQ: {n} + 3\nA:", " 4", f" {n + 3}")
        for n in range(6)
    ],
    "no-shared-context": [choices("The fox", " and")[0:1] + choices("A dog", " sat", " lay")],
    "longer-than-the-window": [choices(LONG, "dog", "fox jumps")],
    "longer-than-the-window-and-unequal": [
        # The longer the choice, the more of the context goes: what they share moves.
        choices(LONG, " a", " the dog sleeps", " turn the lid; to close it", " and" * 20)
    ],
    "choice-pushes-the-context-out": [choices("The dog", " " + "sleeps in the sun " * 9, " a")],
    "some-choices-longer-than-the-window": [choices("The dog" + " the" * 55, " a", " the" * 20)],
}
