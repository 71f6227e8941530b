"""Generation requests one by one, for an engine that schedules them itself (vLLM).

What is asked means what `muscle.evaluation.generation` means: the same tokens, cut to the
same window, the same stop strings, the harness's names for settings, transformers'
defaults. Settings that the other engine lacks are refused, never dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle.errors import UserError
from muscle.evaluation.plan import Plan, make_plan, truncated, written
from muscle.evaluation.sampling import own_settings, seed_number
from muscle.models.encoding import Encoder
from muscle.types import Output, Query, Truncated

# Settings with one name and one meaning in transformers and vLLM, with what transformers'
# generate does where neither the request nor the model's generation_config.json says.
_ALWAYS = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": 0.0}

# What transformers alone knows, at values that do nothing.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
}
_NEUTRAL_SAMPLING: dict[str, Any] = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": 1.0,
}
# Of no effect without beams (which are refused), or no settings of decoding at all.
_INERT = {
    "do_sample",
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "use_cache",
    "cache_implementation",
    "max_length",
    "max_new_tokens",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "transformers_version",
    "_from_model_config",
}


@dataclass(frozen=True, slots=True)
class Prompted:
    """One request as an engine of its own schedule is given it.

    row, request  its place: the query in its group, the request in the query
    tokens        the context, cut to the window
    shortened     whether the cut took its beginning
    sampling      vLLM's SamplingParams by name, always the same names
    until         what the text is cut at
    """

    row: int
    request: int
    tokens: list[int]
    sampling: dict[str, Any]
    until: tuple[str, ...]
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class Loose:
    """One request's answer before its group is whole: a text and what of it did not fit, or
    why there is none."""

    row: int
    request: int
    text: str | None
    error: str | None = None
    truncated: Truncated | None = None


class Requests:
    """A tokenizer's way from queries to prompts and from generated tokens to text.

    Args:
        tokenizer: of the base.
        window: in tokens, for prompt and answer together.
        defaults: the model's own generation settings, as of `generation_defaults`.
        seed: of sampled generation, together with the query's id and the request's place.
    """

    def __init__(
        self, tokenizer: Any, window: int, defaults: Mapping[str, Any], seed: int = 0
    ) -> None:
        self.tokenizer, self.window, self.seed = tokenizer, window, seed
        self.defaults = {n: v for n, v in defaults.items() if v is not None}
        self.encoder = Encoder(tokenizer)
        self.added: dict[str, int] = tokenizer.get_added_vocab()
        self.eos_ids = _eos_ids(tokenizer, self.defaults)
        eos = tokenizer.eos_token_id
        self.eos = None if eos is None else tokenizer.decode(eos, skip_special_tokens=False)

    def of(self, queries: Sequence[Query]) -> "list[Prompted | Loose]":
        """Every request of a group: a prompt, or at once the reason why it can't be one.

        Raises:
            UserError: a setting that vLLM does not know.
        """
        places = [(q, r) for q, query in enumerate(queries) for r in range(len(query.requests))]
        asked = [queries[q].requests[r] for q, r in places]
        chats = [queries[q].chat is not None for q, _ in places]
        contexts = self.encoder.begun([request.context for request in asked], chats)
        found: list[Prompted | Loose] = []
        for (q, r), context, request in zip(places, contexts, asked, strict=True):
            try:
                wanted = make_plan(request.generation, self.eos, len(context))
                tokens = truncated(context, wanted.max_new_tokens, self.window)
            except (ValueError, TypeError) as error:
                found.append(Loose(q, r, None, str(error)))
                continue
            seed = seed_number(f"{self.seed}\0{queries[q].id}\0{r}")
            sampling, shortened = self.sampling(wanted, seed), len(tokens) < len(context)
            found.append(Prompted(q, r, tokens, sampling, wanted.until, shortened))
        return found

    def sampling(self, wanted: Plan, seed: int) -> dict[str, Any]:
        """SamplingParams of a plan. All names are always there: rows share a column.

        Raises:
            UserError: a setting that vLLM does not know.
        """
        given = {n: v for n, v in wanted.arguments.items() if v is not None}
        settings = {**self.defaults, **given}
        least = int(settings.pop("min_new_tokens", 0) or 0)
        params: dict[str, Any] = {n: float(settings.pop(n, v)) for n, v in _ALWAYS.items()}
        drawn = {n: settings.pop(n, v) for n, v in _SAMPLING.items()}
        if not wanted.sampled:  # transformers ignores them too
            drawn = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        for name, value in settings.items():
            if not does_nothing(name, value, wanted.sampled):
                raise UserError(
                    f"generation setting {name!r} ({value!r}, of the task or of the model's "
                    "generation_config.json) is not known to vLLM: use --backend transformers"
                )
        params |= {name: float(drawn[name]) for name in ("temperature", "top_p", "min_p")}
        stops = [stop for stop in wanted.until if stop]
        # A special token is no part of vLLM's text, so as a string it would never be found.
        ids = self.eos_ids | {self.added[stop] for stop in stops if stop in self.added}
        return params | {
            "top_k": int(drawn["top_k"]),
            "min_tokens": least,
            "max_tokens": wanted.max_new_tokens,
            "seed": seed,
            "stop": stops,
            "stop_token_ids": sorted(ids),
        }

    def output(
        self,
        tokens: Sequence[int],
        until: Sequence[str],
        limit: int,
        shortened: bool = False,
    ) -> Output:
        """Generated tokens as the harness reads them, with what did not fit.

        From the tokens and not from vLLM's text, which ends before the stop string that is
        complete first, where the harness cuts at one after the other.

        Args:
            limit: the most tokens that there may be.
            shortened: the prompt lost its beginning.
        """
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        stops = self.eos_ids | {self.added[stop] for stop in until if stop in self.added}
        ended = len(tokens) < limit or tokens[-1] in stops
        return written(text, until, ended, shortened)


def generation_defaults(model: str, revision: str | None) -> dict[str, Any]:
    """What a model's generation_config.json sets; vLLM is told, since it would not apply it
    to requests that bring settings of their own, and transformers does."""
    from transformers import GenerationConfig

    from muscle.models import load_config, open_model

    ref, at = open_model(model, revision, weights=False)
    try:
        config = GenerationConfig.from_pretrained(ref, revision=at or "main")
    except OSError:  # it has none: as transformers does
        config = GenerationConfig.from_model_config(load_config(model, revision))
    return own_settings(config)


def does_nothing(name: str, value: Any, sampled: bool) -> bool:
    """Whether a setting of transformers' generate changes nothing, so that it may be left out."""
    if name in _INERT:
        return True
    if name in _NEUTRAL:
        return bool(value == _NEUTRAL[name])
    if name in _NEUTRAL_SAMPLING:
        return not sampled or bool(value == _NEUTRAL_SAMPLING[name])
    return value is False


def _eos_ids(tokenizer: Any, defaults: Mapping[str, Any]) -> set[int]:
    """The tokens at which transformers ends a row, and the tokenizer's own, a stop string."""
    ids = defaults.get("eos_token_id", [])
    found = set(ids if isinstance(ids, list | tuple) else [ids])
    return found | ({tokenizer.eos_token_id} - {None})
