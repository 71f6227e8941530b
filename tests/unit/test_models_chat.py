"""Chat templates, against HFLM's own rendering."""

from types import SimpleNamespace

import pytest
from tiny import make_tokenizer

from muscle.errors import UserError
from muscle.models.chat import chat_fingerprint, chat_renderer, chat_template

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)
TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}|{% endfor %}"
)
USER = {"role": "user", "content": " What is 1 + 1? "}
MESSAGES = [{"role": "system", "content": "Be brief."}, USER]
OPEN = [*MESSAGES, {"role": "assistant", "content": "The answer"}]


def tokenizer(template):
    found = make_tokenizer()
    found.chat_template = template
    return found


def hflm(found):
    """HFLM's method on a stand-in: it reads nothing else of the model."""
    from lm_eval.models.huggingface import HFLM

    lm = SimpleNamespace(tokenizer=found, chat_template_args={})
    return lambda messages, open_turn: HFLM.apply_chat_template(lm, messages, open_turn)


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, {"default": CHATML, "other": "x"}])
@pytest.mark.parametrize(("messages", "open_turn"), [(MESSAGES, True), (OPEN, False)])
def test_rendering_is_the_harness_own(template, messages, open_turn):
    found = tokenizer(template)
    text = chat_renderer(found)(messages, open_turn)
    assert text == hflm(found)(messages, open_turn)
    assert text.startswith("<s>") and ("Be brief." in text) == (template != NO_SYSTEM)
    assert text.endswith("<|assistant|>\n" if open_turn else "The answer")


def test_named_templates():
    found = tokenizer({"default": CHATML, "short": "{{ messages[-1].content }}"})
    assert chat_renderer(found, "short")([USER], True) == USER["content"]
    assert chat_renderer(found, None)([USER], True) == chat_renderer(found, "default")([USER], True)
    # One name serves models with one template and models with several, as in the harness.
    assert chat_template(tokenizer(CHATML), "short") == CHATML
    with pytest.raises(UserError, match="no chat template called 'long': name one of default, sho"):
        chat_renderer(found, "long")
    with pytest.raises(UserError, match="no chat template called 'default': name one of a, b in"):
        chat_renderer(tokenizer({"b": CHATML, "a": CHATML}))


def test_no_template():
    found = tokenizer(None)
    with pytest.raises(UserError, match=r"^the tokenizer has no chat template: leave --apply-chat"):
        chat_renderer(found)
    found.name_or_path = "some/base"
    with pytest.raises(UserError, match="the tokenizer of model 'some/base' has no chat template"):
        chat_fingerprint(found)


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (TURNS, [USER, USER], "roles must alternate"),
        ("{{ messages | nonsense }}", [USER], "nonsense"),
        ("{% if broken", [USER], "unexpected"),
    ],
)
def test_templates_that_refuse(template, messages, reason):
    with pytest.raises(UserError, match=f"refuses the messages .*{reason}") as caught:
        chat_renderer(tokenizer(template))(messages, True)
    assert "\n" not in str(caught.value)


def test_fingerprint_is_of_template_and_special_tokens():
    found = tokenizer({"default": CHATML, "other": NO_SYSTEM})
    assert chat_fingerprint(found) == chat_fingerprint(tokenizer(CHATML))
    assert chat_fingerprint(found) != chat_fingerprint(found, "other")
    found.bos_token = "</s>"
    assert chat_fingerprint(found) != chat_fingerprint(tokenizer(CHATML))
