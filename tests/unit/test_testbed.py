"""The testbed: seeded, disjoint splits, right answers, harness files, base models."""

import json
import re
from pathlib import Path

import pytest

from muscle.errors import UserError
from muscle.testbed import MODELS, TASKS, TASKS_DIR, model_path
from muscle.testbed.arithmetic import arithmetic_rows
from muscle.testbed.choice import CHOICES, choice_rows
from muscle.testbed.lexicon import ONES, TENS, VALUES, number_words
from muscle.testbed.rows import TEST_ROWS, TRAIN_ROWS, score_summary
from muscle.testbed.summary import summary_rows
from muscle.testbed.text import documents
from muscle.testbed.world import ATTRIBUTES, SEED, build_world

MAKERS = {"choice": choice_rows, "arithmetic": arithmetic_rows, "summary": summary_rows}
TEXT = {"choice": "question", "arithmetic": "question", "summary": "dialogue"}


@pytest.fixture(scope="module")
def rows():
    return {
        (name, split): make(SEED, split, count)
        for name, make in MAKERS.items()
        for split, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS))
    }


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(model_path(name)) for name in MODELS}


@pytest.fixture(scope="module")
def tasks():
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=TASKS_DIR, include_defaults=False)
    return manager.load_task_or_group(list(TASKS))


@pytest.mark.parametrize("name", MAKERS)
def test_seeded(name, rows):
    make = MAKERS[name]
    assert make(SEED, "test", TEST_ROWS) == rows[name, "test"]
    assert make(SEED + 1, "test", 50) != rows[name, "test"][:50]


def test_text_is_seeded():
    assert list(documents(SEED, 0, 50)) == list(documents(SEED, 0, 50))
    assert list(documents(SEED, 0, 50)) != list(documents(SEED, 1, 50))


@pytest.mark.parametrize("name", MAKERS)
def test_sizes_and_disjoint(name, rows):
    assert len(rows[name, "test"]) >= 2000
    texts = {s: [r[TEXT[name]] for r in rows[name, s]] for s in ("train", "test")}
    ids = [r["id"] for s in ("train", "test") for r in rows[name, s]]
    assert len(set(ids)) == len(ids)
    for split in texts.values():
        assert len(set(split)) == len(split)
    assert not set(texts["train"]) & set(texts["test"])


def test_pretraining_text_holds_no_question(rows):
    # Whole sentences: "three without two is" is no part of "sixty three without two is".
    text = "." + ".".join([*documents(SEED, 0, 3000), *documents(SEED, 1, 3000)])
    for (name, _), split in rows.items():
        assert not [r["id"] for r in split if f". {r[TEXT[name]]}" in text]


def _value(words: str) -> int:
    """A number word read by hand: independent of `number_words`."""
    total = 0
    for word in words.split():
        if word == "hundred":
            total *= 100
        else:
            total += ONES.index(word) if word in ONES else 10 * TENS.index(word)
    return total


def test_number_words():
    assert [_value(number_words(n)) for n in range(1000)] == list(range(1000))
    with pytest.raises(ValueError, match="1000"):
        number_words(1000)


def test_arithmetic_gold(rows):
    number = rf"(?:(?:{'|'.join((*ONES, *TENS[2:], 'hundred'))})\b ?)+"
    operand = re.compile(rf"(^|with |buys |without |sells |has )({number})")
    sign = {"without": -1, "sells": -1}
    problems: dict[str, set] = {"train": set(), "test": set()}
    for split in problems:
        for row in rows["arithmetic", split]:
            found = [
                (sign.get(word.strip(), 1), _value(n))
                for word, n in operand.findall(row["question"])
            ]
            assert len(found) >= 2
            assert sum(s * n for s, n in found) == _value(row["answer"]), row
            problems[split].add(tuple(found))
    assert not problems["train"] & problems["test"]


def test_choice_gold(rows):
    world = build_world()
    people = {person.name: person for person in world.people}
    for split in ("train", "test"):
        for row in rows["choice", split]:
            question, choices, gold = row["question"], row["choices"], row["gold"]
            assert len(set(choices)) == len(choices) == CHOICES
            assert 0 <= gold < CHOICES
            if question.startswith("Which is the "):
                ranks = world.weight if "heaviest" in question else world.price
                scores = [ranks[choice.removeprefix("the ")] for choice in choices]
                assert scores.index(max(scores)) == gold
                continue
            (person,) = [p for name, p in people.items() if re.search(rf"\b{name}\b", question)]
            true = {
                say.format(who=person.name, value=person.facts[a.key])
                for a in ATTRIBUTES
                for say in (*a.says, f"{{who}} {a.ending}.")
            }
            assert [choice in true for choice in choices].count(True) == 1
            assert choices[gold] in true


def test_choice_positions_are_even(rows):
    golds = [row["gold"] for row in rows["choice", "test"]]
    assert max(golds.count(g) for g in range(CHOICES)) < 0.3 * len(golds)


def test_values_are_distinct():
    assert all(len(set(values)) == len(values) for values in VALUES.values())
    assert len({p.name for p in build_world().people}) == len(build_world().people)


def test_summary_names_its_people(rows):
    for row in rows["summary", "test"]:
        speakers = set(re.findall(r"(\w+):", row["dialogue"]))
        assert len(speakers) == 2
        assert any(name in row["summary"] for name in speakers)
        assert score_summary(row, [row["summary"]]) == {"rouge1": 1.0}
    assert score_summary({"summary": "a b"}, [""]) == {"rouge1": 0.0}


def test_harness_tasks(tasks):
    for name in TASKS:
        task = tasks[name] if name in tasks else tasks["tasks"][name]
        assert len(list(task.test_docs())) == TEST_ROWS
        assert len(list(task.training_docs())) == TRAIN_ROWS
        doc = next(iter(task.test_docs()))
        assert isinstance(doc["id"], str)
        assert task.config.target_delimiter == " "
        task.build_all_requests(limit=4, rank=0, world_size=1)
        first = task.instances[0]
        context = first.args[0]
        assert context == context.strip()  # the delimiter holds the space, not the context
        if name == "testbed_choice":
            assert len(task.instances) == 4 * CHOICES
            likely = [(0.0 if i == doc["gold"] else -5.0, False) for i in range(CHOICES)]
            assert task.process_results(doc, likely)["acc"] == 1.0
        else:
            gold = doc["answer" if name == "testbed_arithmetic" else "summary"]
            # What a model says begins with the delimiter: the filters must take it off.
            for instance in task.instances:
                instance.resps = [f" {gold}"]
            task.apply_filters()
            metrics = task.process_results(doc, [first.filtered_resps["none"]])
            assert list(metrics.values()) == [1.0]
            assert first.args[1]["until"] == ["\n"] and first.args[1]["do_sample"] is False


def test_base_models_load_and_differ():
    from transformers import AutoModelForCausalLM

    sizes = {}
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(model_path(name))
        sizes[name] = model.num_parameters()
        facts = json.loads((Path(model_path(name)) / "pretraining.json").read_text())
        assert facts["parameters"] == sizes[name]
        assert model.config.tie_word_embeddings
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sizes["v2"] > sizes["v1"]
    folder = Path(model_path("v1")).parent
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 8e6


@pytest.mark.parametrize(
    "text",
    [
        "Where does Mira live?",
        "  two  spaces\n\tand tabs ",
        "Žluťoučký 東京 🙂 \x00",
        "",
        "don't 42%",
    ],
)
def test_tokenizer_takes_any_text(tokenizers, text):
    encoded = [tokenizer(text).input_ids for tokenizer in tokenizers.values()]
    assert encoded[0] == encoded[1]
    for tokenizer in tokenizers.values():
        assert encoded[0][0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in encoded[0]
        assert tokenizer.decode(encoded[0], skip_special_tokens=True) == text
    assert tokenizers["v1"].get_vocab() == tokenizers["v2"].get_vocab()


def test_sequences_are_short(tokenizers, rows):
    tokenizer = tokenizers["v1"]
    for name, limit in {"choice": 44, "arithmetic": 64, "summary": 96}.items():
        for row in rows[name, "test"]:
            answer = {
                "choice": lambda r: max(r["choices"], key=len),
                "arithmetic": lambda r: r["answer"],
                "summary": lambda r: r["summary"],
            }[name](row)
            head = "Dialogue" if name == "summary" else "Question"
            text = f"{head}: {row[TEXT[name]]}\nAnswer: {answer}"
            assert len(tokenizer(text).input_ids) + 1 <= limit


def test_unknown_model():
    with pytest.raises(UserError, match="v3"):
        model_path("v3")
