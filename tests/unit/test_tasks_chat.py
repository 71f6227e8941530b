"""Chat prompts: the requests that the harness's evaluator builds with HFLM's templates."""

import json

import pytest
from task_fakes import answer, config, fake_model, oracle, write_task
from test_models_chat import CHATML, NO_SYSTEM, TURNS, hflm, tokenizer

from muscle.errors import UserError
from muscle.models.chat import chat_renderer
from muscle.tasks import Prompting, load_task

ROWS = [
    {"q": f"Q: is {i} even?\nA:", "label": i % 2, "a": "yes" if i % 2 else "no", "n": i}
    for i in range(7)
]
SPLITS = "training_split: train\ntest_split: test\n"
ACC = "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
CHOICES = SPLITS + (
    'output_type: multiple_choice\ndescription: "Say yes or no.\\n\\n"\n'
    'doc_to_text: "{{q}}"\ndoc_to_choice: ["no", "yes"]\ndoc_to_target: label\n'
)
TASKS = {
    "choices": CHOICES,
    "prefixed": CHOICES + 'gen_prefix: "I say"\n',
    "spaced": CHOICES + 'gen_prefix: "I say "\n',
    "mutual": CHOICES + ACC.replace("acc,", "acc_mutual_info,"),
    "blanks": SPLITS
    + "output_type: multiple_choice\ndoc_to_text: label\ndoc_to_target: a\n"
    + "doc_to_choice: \"{{['It is '+a, 'Is it '+a]}}\"\n",
    "written": SPLITS + 'doc_to_text: "{{q}}"\ndoc_to_target: a\n',
    "led": SPLITS + 'doc_to_text: "{{q}}"\ndoc_to_target: a\ngen_prefix: "So:"\n',
    "lastword": SPLITS
    + 'output_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{\' \'+a}}"\n'
    + ACC,
    "page": SPLITS
    + 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\n',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat")
    for name, yaml in TASKS.items():
        write_task(path, name, yaml, ROWS)
    return path


def asked(queries):
    """The requests as the harness's samples hold them."""
    return [
        tuple(
            (r.context, json.loads(r.generation)) if r.generation
            else (r.context, r.continuation) if r.kind == "loglikelihood"
            else (r.context,)
            for r in q.requests
        )
        for q in queries
    ]  # fmt: skip


WAYS = [
    (None, None, False),
    (None, "Be brief.", False),
    (CHATML, None, False),
    (CHATML, "Be brief.", True),
    (NO_SYSTEM, "Be brief.", False),
]


@pytest.mark.parametrize("name", TASKS)
def test_requests_are_the_harness_own(folder, name):
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from muscle.tasks.harness import quiet

    manager = TaskManager(include_path=str(folder / "yaml"), include_defaults=False)
    for shots in (0, 2):
        task = load_task(config(folder, name, num_fewshot=shots))
        plain = task.predictions([answer(q) for q in task.queries()])
        with quiet():
            theirs = manager.load(name)
        for template, system, turns in WAYS:
            found = tokenizer(template)
            chat = chat_renderer(found) if template else None
            prompting = Prompting(system, chat, "tiny" if chat else None, turns)
            with quiet():
                theirs["tasks"][name].set_config("num_fewshot", shots)
                theirs["tasks"][name].set_fewshot_seed(1234)
                expected = evaluate(
                    fake_model(hflm(found)), theirs, bootstrap_iters=0, system_instruction=system,
                    apply_chat_template=chat is not None, fewshot_as_multiturn=turns,
                )  # fmt: skip
                for instance in theirs["tasks"][name].instances:
                    instance.resps = []
            queries = task.queries(prompting=prompting)
            samples = expected["samples"][name]
            assert asked(queries) == [tuple(map(tuple, s["arguments"])) for s in samples]
            judged = task.judge([answer(q) for q in queries])
            result = expected["results"][name]
            assert judged.scores == {key: result[key] for key in judged.scores}
            # Whatever the model was told, the questions of two versions are the same.
            assert [p.question for p in judged.predictions] == [p.question for p in plain]


def test_the_plain_prompt_is_simple_evaluates(folder):
    expected = oracle(str(folder / "yaml"), "choices", num_fewshot=3)
    task = load_task(config(folder, "choices", num_fewshot=3))
    arguments = [tuple(map(tuple, s["arguments"])) for s in expected["samples"]["choices"]]
    assert asked(task.queries()) == arguments
    # A limit changes nothing, and neither does having been asked before.
    chat = Prompting(chat=chat_renderer(tokenizer(CHATML)), fewshot_as_multiturn=True)
    assert task.queries(3, chat) == task.queries(None, chat)[:3]
    assert asked(task.queries()) == arguments


def test_what_a_chat_looks_like(folder):
    task = load_task(config(folder, "choices", num_fewshot=1))
    chat = chat_renderer(tokenizer(CHATML))
    one = task.queries(1, Prompting("Be brief.", chat))[0].requests
    assert one[0].context.startswith("<s><|system|>\nBe brief.\n\nSay yes or no.\n\n<|end|>")
    assert one[0].context.count("<|user|>") == 1 and one[0].context.endswith("<|assistant|>\n")
    assert [r.continuation for r in one] == ["no", "yes"]  # a turn begins without a space
    many = task.queries(1, Prompting(None, chat, "x", True))[0].requests
    assert many[0].context.count("<|user|>") == 2


def test_fingerprints_cover_the_prompting(folder):
    task = load_task(config(folder, "choices", num_fewshot=1))
    chat, other = (chat_renderer(tokenizer(t)) for t in (CHATML, CHATML.replace("|", "")))
    ways = [
        None,
        Prompting("Be brief."),
        Prompting(chat=chat),
        Prompting(chat=other),
        Prompting(chat=chat, fewshot_as_multiturn=True),
    ]
    prints = [task.evaluation_fingerprint(2, way) for way in ways]
    assert len(set(prints)) == len(ways)
    assert task.evaluation_fingerprint(2, Prompting()) == prints[0]


def test_refusals(folder):
    with pytest.raises(UserError, match=r"--fewshot-as-multiturn.*only with --apply-chat-template"):
        Prompting(fewshot_as_multiturn=True)
    task = load_task(config(folder, "choices"))
    with pytest.raises(UserError, match=r"refuses the messages .*roles must alternate"):
        task.queries(
            prompting=Prompting(chat=lambda m, o: chat_renderer(tokenizer(TURNS))(m * 2, o))
        )

    def broken(messages, open_turn):
        raise KeyError("role")

    with pytest.raises(UserError, match="task 'choices' can't be rendered as a chat: KeyError"):
        task.queries(prompting=Prompting(chat=broken))
