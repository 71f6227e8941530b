"""Chats by a version's own template: dates, the assistant's turns, templates that can't train."""

from typing import Any

import pytest
from tiny import make_tokenizer

from muscle.errors import UserError
from muscle.models.chat_template import load_chat_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%Y') %}{%- endif %}"
    "{{ bos_token }}<|h|>system\n\nToday: {{ date_string }} {{ strftime_now('%A') }}<|eot|>"
    "{% for m in messages %}<|h|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system here') }}{% elif m.role == 'user' %}[INST] {{ m.content }} "
    "[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
STRIPS = (  # what was thought is dropped once it is no longer the last turn
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last"
    " %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
DROPS = CHATML.replace("{{ m.content }}", "{{ m.content[:3] }}")
NO_TOOLS = CHATML
TOOLS = "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML

CHAT = [
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": " Hi<think>x</think>y "},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The team."},
]


def template(source: str | None, date: str | None = None) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|h|>", "<|eot|>"], special_tokens=True)
    tokenizer.chat_template = source
    return load_chat_template(tokenizer, None, date)


@pytest.mark.parametrize(
    ("source", "end"),
    [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>"), (MISTRAL, "</s>")],
)
def test_turns_are_what_a_model_would_write(source: str, end: str) -> None:
    found = template(source)
    assert found.end_of_turn == end
    chat = found.conversation(CHAT)
    assert len(chat.turns) == 2 and not chat.rewritten
    for (start, stop), place in zip(chat.turns, (1, 3), strict=True):
        # Generation begins where the opened turn ends, and ends with the end-of-turn token.
        assert chat.text[:start] == found.prompt(CHAT[:place])
        turn = chat.text[start:stop]
        assert turn.endswith(end) and turn.count(end) == 1
        assert CHAT[place]["content"].strip() in turn
    if source != LLAMA3:  # which reads the clock in transformers
        assert chat.text == found.tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_no_template_reads_the_clock() -> None:
    text = template(LLAMA3).prompt(CHAT[:1])
    assert "Today: 26 Jul 2024 Friday" in text
    other = template(LLAMA3, "2025-01-02")
    assert "Today: 02 Jan 2025 Thursday" in other.prompt(CHAT[:1])
    assert other.name != template(LLAMA3).name
    # What doesn't ask for the date doesn't depend on it.
    assert template(CHATML, "2025-01-02").name == template(CHATML).name
    assert template("\nx" + LLAMA3).prompt(CHAT[:1]) == "\nx" + text


def test_a_template_that_rewrites_trains_the_last_turn_alone() -> None:
    chat = template(STRIPS).conversation(CHAT)
    assert chat.rewritten and len(chat.turns) == 1
    start, end = chat.turns[0]
    assert chat.text[start:end] == "The team.<|im_end|>"


def test_what_follows_the_last_answer_is_left_out() -> None:
    chat = template(CHATML).conversation([*CHAT, {"role": "user", "content": "Thanks"}])
    assert chat.text == template(CHATML).conversation(CHAT).text


def test_tools() -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    assert template(NO_TOOLS).ignores(CHAT[:1], tools)
    assert not template(TOOLS).ignores(CHAT[:1], tools)
    assert not template(NO_TOOLS).ignores(CHAT[:1], None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NO_END, "writes no end-of-turn token after an assistant's answer"),
        ("{% if broken", "fails: "),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
            "has no generation prompt: it keeps an answer after 'assistant:'",
        ),
        (None, "has no chat template"),
    ],
)
def test_templates_that_no_chat_can_use(source: str | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        template(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "chat", "reason"),
    [
        (THINKS, CHAT, "opens an assistant's turn in other words than it keeps one"),
        (DROPS, CHAT, "changes or drops an assistant's answer"),
        (MISTRAL, [{"role": "system", "content": "x"}, *CHAT], "fails: no system here"),
        (CHATML, CHAT[:1], "the chat has no assistant's turn"),
    ],
)
def test_chats_that_a_template_refuses(source: str, chat: list[Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        template(source).conversation(chat)
    assert "\n" not in str(caught.value)


def test_a_file(tmp_path: Any) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert load_chat_template(tokenizer, str(path)).source == CHATML
    with pytest.raises(UserError, match="does not exist"):
        load_chat_template(tokenizer, str(tmp_path / "none.jinja"))
    with pytest.raises(UserError, match=r"task\.date' is '26\.7\.2024'"):
        load_chat_template(tokenizer, str(path), "26.7.2024")
