"""`muscle plan`: counts against real models, work against real steps, and what fits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import make_model as tiny_model
from tiny import tiny_config
from typer.testing import CliRunner

from muscle.cli import app, main
from muscle.config import (
    AdapterConfig,
    CompatibilityConfig,
    HardwareConfig,
    ResourcesConfig,
)
from muscle.errors import UserError
from muscle.experiment import load_experiment
from muscle.models import adapter_parameters, hidden_states, load_base, load_config, new_adapter
from muscle.models.sequences import Sequences, tokenise
from muscle.planning.estimate import reckon, reckon_cache
from muscle.planning.facts import Facts, gather_facts
from muscle.planning.fitting import advise
from muscle.planning.flops import body_forward, training_pass
from muscle.planning.hardware import CARDS, find_hardware
from muscle.planning.memory import (
    logit_bytes,
    read_sharding,
    training_memory,
)
from muscle.planning.meta import (
    Ledger,
    MetaModel,
    Peaks,
    meta_model,
    trace_forward,
    trace_training,
)
from muscle.planning.view import advice_line, amount, duration
from muscle.planning.work import Work, evaluation_work, forward_work, training_work
from muscle.splits import training_split
from muscle.tasks import load_task
from muscle.teachers.choose import choose
from muscle.training.settings import read_deepspeed
from muscle.types import Query, Request

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "experiments" / "demo.yaml"
KINDS = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Phi", "Phi3"]
QUICK = ["--set", "training.limit=200", "--set", "evaluation.limit=100"]
LORA = AdapterConfig(r=4, alpha=8)


def config_of(kind: str, **changes: Any) -> Any:
    if kind == "Phi":
        changes["num_key_value_heads"] = 4
    return tiny_config(kind, **changes)


# --- counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["testbed:v1", "testbed:v2"])
def test_counts_are_those_of_the_loaded_model(name: str) -> None:
    meta = meta_model(load_config(name), LORA, "float32", False, name)
    model = load_base(name)
    assert meta.base == sum(p.numel() for p in model.parameters())
    adapted = new_adapter(model, LORA, 0, "new")
    assert meta.adapter == sum(p.numel() for p in adapter_parameters(adapted, "new").values())
    assert meta.weight_bytes == 4 * meta.base


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_all_architectures(kind: str) -> None:
    meta = meta_model(config_of(kind), LORA, "bfloat16", False, kind)
    changes = {"num_key_value_heads": 4} if kind == "Phi" else {}
    model = tiny_model(kind, **changes)
    assert meta.base == sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    assert meta.linear == sum(m.weight.numel() for m in linear)
    assert meta.vocabulary == head.weight.shape[0]
    adapted = new_adapter(model, LORA, 0, "new")
    assert meta.adapter == sum(p.numel() for p in adapter_parameters(adapted, "new").values())


# --- allocations ----------------------------------------------------------------------


def real_peaks(model: Any, rows: int, length: int, checkpointing: bool) -> Peaks:
    """The same ledger around a step that really computes, with torch's own attention."""
    from muscle.training.student import Student, Teachers

    model = new_adapter(model, LORA, 0, "plan")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    Student(model, "plan", Teachers((), None), None).training_mode()
    ids = torch.randint(3, 60, (rows, length))
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    with Ledger(iter([*model.parameters(), *model.buffers()])) as ledger:
        hidden = hidden_states(model, ids, mask)
        kept = ledger.live
        hidden.backward(torch.ones_like(hidden))
        return Peaks(kept, ledger.peak, ledger.operations)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Phi", "Gemma2"])
def test_allocations_are_those_of_a_real_step(kind: str, checkpointing: bool) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "head_dim": 16}
    config = config_of(kind, **wide)
    meta = meta_model(config, LORA, "float32", False, kind)
    planned = trace_training(meta, 4, 48, checkpointing)
    changes = {"num_key_value_heads": 4} if kind == "Phi" else {}
    real = real_peaks(tiny_model(kind, **wide, **changes), 4, 48, checkpointing)
    assert planned.kept == pytest.approx(real.kept, rel=0.1)
    # The real one also holds the gradients that have come so far.
    assert planned.backward == pytest.approx(real.backward, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_allocations_of_a_mid_size_model(checkpointing: bool) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
    shape = wide | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    meta = meta_model(tiny_config("Llama", **shape), LORA, "float32", False, "mid")
    planned = trace_training(meta, 4, 64, checkpointing)
    real = real_peaks(tiny_model("Llama", **shape), 4, 64, checkpointing)
    assert planned.kept == pytest.approx(real.kept, rel=0.05)
    assert planned.backward == pytest.approx(real.backward, rel=0.1)


def test_saved_for_backward_is_what_the_trace_keeps() -> None:
    """Another witness: what autograd itself packs away, each storage once, no parameters."""
    wide = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "head_dim": 16}
    planned = trace_training(
        meta_model(tiny_config("Llama", **wide), LORA, "float32", False, ""), 4, 48, False
    )
    model = new_adapter(tiny_model("Llama", **wide), LORA, 0, "plan")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            saved[place] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(3, 60, (4, 48))
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = hidden_states(model, ids, mask)
    assert planned.kept == pytest.approx(sum(saved.values()) + hidden.nbytes, rel=0.1)


def test_checkpointing_keeps_less_and_allocations_grow_with_tokens() -> None:
    meta = meta_model(tiny_config("Llama", num_hidden_layers=6), LORA, "float32", False, "x")
    whole, less = (trace_training(meta, 1, 64, c) for c in (False, True))
    assert less.backward < whole.backward / 2 and less.operations > whole.operations
    assert trace_training(meta, 4, 128, False).kept == pytest.approx(8 * whole.kept, rel=0.02)
    assert trace_forward(meta, 1, 64).most < less.backward


# --- work -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(checkpointing: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from muscle.training.student import Student, Teachers

    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 8, "head_dim": 16}
    meta = meta_model(tiny_config("Llama", **shape), LORA, "float32", False, "x")
    model = new_adapter(tiny_model("Llama", **shape), LORA, 0, "new")
    model.get_base_model().set_attn_implementation("eager")  # fused ones aren't counted on a CPU
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    Student(model, "new", Teachers((), None), None).training_mode()
    ids = torch.randint(3, 60, (4, 48))
    with FlopCounterMode(display=False) as counter:
        hidden_states(model, ids).sum().backward()
    work = Work(tokens=4 * 48, squares=4 * 48 * 48, scored=0, batches=1)
    planned = training_pass(meta, work, checkpointing)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.05)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden_states(model, ids)
    planned = body_forward(meta, work.tokens, work.squares)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


def sequences(lengths: list[int]) -> Sequences:
    import numpy as np

    return Sequences([np.arange(n) for n in lengths], [1] * len(lengths))


def test_work_counts_padding_and_waiting() -> None:
    data = sequences([10, 10, 4, 4])
    one = forward_work(data, 20)
    assert (one.tokens, one.squares, one.scored, one.batches) == (28, 232, 24, 2)
    assert (one.rows, one.length, one.most_scored) == (2, 10, 18)
    assert one.waiting == 1.0
    two = forward_work(data, 20, workers=2)  # 20 beside 8: the second worker waits
    assert two.critical == 40 and two.waiting == pytest.approx(40 / 28)


def test_training_work_is_what_the_loop_runs() -> None:
    from muscle.config import TrainingConfig
    from muscle.models.sequences import micro_batches
    from muscle.training.order import permutation, updates

    data = sequences([3 + i % 7 for i in range(25)])
    settings = TrainingConfig(batch_size=2, accumulation=2)
    work = training_work(data, settings, 5, 16, 1)
    order = permutation(25, 5, 0)
    tokens = 0
    for part in updates(25, 4):
        for rows in micro_batches(data, order[part].tolist(), 16):
            tokens += len(rows) * max(len(data.ids[i]) for i in rows)
    assert work.tokens == work.critical == tokens
    assert work.scored == sum(data.targets(i) for i in range(25))


def test_choices_share_their_context() -> None:
    from tiny import make_tokenizer

    tokenizer = make_tokenizer()
    context = "The quick brown fox"
    requests = tuple(Request("loglikelihood", context, ending) for ending in (" jumps", " dog"))
    asked = evaluation_work([Query("0", requests)], tokenizer, 64)
    alone = [len(tokenizer.encode(context + ending)) for ending in (" jumps", " dog")]
    assert asked.examples == 1 and asked.longest == max(alone)
    assert asked.tokens == sum(alone) - len(tokenizer.encode(context))


def test_generation_counts_its_new_tokens() -> None:
    from tiny import make_tokenizer

    tokenizer = make_tokenizer()
    request = Request("generate_until", "The fox", generation='{"max_gen_toks": 7}')
    asked = evaluation_work([Query("0", (request,))] * 3, tokenizer, 64)
    assert (asked.generated, asked.requests) == (21, 3)
    assert asked.longest == len(tokenizer.encode("The fox")) + 7


# --- memory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> MetaModel:
    return meta_model(tiny_config("Llama"), LORA, "bfloat16", False, "x")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3-offload"])
def test_zero_divides_what_it_says(small: MetaModel, stage: str) -> None:
    def memory(workers: int) -> Any:
        sharding = read_sharding(read_deepspeed(stage), workers)
        return training_memory(small, sharding, Peaks(10, 30, 1), 5.0, "cuda")

    one, four = memory(1), memory(4)
    offload = stage == "zero3-offload"
    assert one.optimizer == (0 if offload else 12 * small.adapter)
    assert four.optimizer == one.optimizer / 4
    assert one.host == (small.weight_bytes + 12 * small.adapter if offload else 0)
    assert (four.gradients < one.gradients) == (stage != "zero1")
    if stage in ("zero1", "zero2"):
        assert one.weights == four.weights == small.weight_bytes
    assert one.activations == 30 and one.logits == 5 and one.overlap == 5
    parts = one.weights + one.adapter + one.optimizer + one.gradients + one.buffers + one.runtime
    assert one.total == parts + 30  # the logits come when 10 are held: 15 is less than 30


def test_zero3_shards_a_base_that_is_more_than_what_it_keeps_gathered() -> None:
    config = load_config("testbed:v1")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 48, 2048, 8192
    config.num_attention_heads = config.num_key_value_heads = 16
    config.head_dim = 128
    large = meta_model(config, LORA, "bfloat16", False, "x")
    sharding = read_sharding(read_deepspeed("zero3"), 8)
    assert large.base > sharding.live
    memory = training_memory(large, sharding, Peaks(0, 0, 1), 0.0, "cuda")
    assert memory.weights == large.weight_bytes / 8 + 2 * sharding.live


def test_logits_stay_within_a_chunk() -> None:
    few = logit_bytes(10, 1000, "float32", "cpu", None)
    assert few == 4 * 10 * 1000
    loss = CompatibilityConfig(level="token")
    many = [logit_bytes(n, 32_000, "bfloat16", "cuda", loss) for n in (5e3, 5e6)]
    assert many[1] <= many[0] * 1.3
    plain = logit_bytes(5000, 32_000, "bfloat16", "cuda", None)
    masks = [CompatibilityConfig(mask=m) for m in ("never-old", "student-wrong", "old-right")]
    sizes = [logit_bytes(5000, 32_000, "bfloat16", "cuda", loss) for loss in masks]
    assert plain < sizes[0] < sizes[1] < sizes[2]


# --- the cache ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "passes", "needed", "free", "zero3", "mask", "cached"),
    [
        ("auto", 2, 10, 100, False, "student-wrong", True),
        ("auto", 1, 10, 100, False, "student-wrong", False),
        ("auto", 9, 100, 100, False, "student-wrong", False),
        ("auto", 9, 100, None, False, "student-wrong", True),
        ("auto", 1, 100, 1, True, "student-wrong", True),
        ("auto", 9, 10, 100, False, "never-old", False),
        ("auto", 1, 10, 100, True, "never-old", True),
        ("cached", 1, 100, 1, False, "never-old", True),
        ("online", 9, 10, 100, True, "student-wrong", False),
        ("cached", 9, 0, 100, True, "student-wrong", False),
    ],
)
def test_when_teachers_are_cached(
    setting: str,
    passes: int,
    needed: int,
    free: int | None,
    zero3: bool,
    mask: str,
    cached: bool,
) -> None:
    choice = choose(setting, passes, needed, free, zero3, mask)
    assert choice.cached is cached and choice.reason


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    given = ["hardware.gpu=A100-80GB", "training.limit=200", "evaluation.limit=100"]
    return gather_facts(load_experiment(DEMO, given), str(tmp_path_factory.mktemp("runs")))


def test_cache_bytes_by_hand(demo: Facts) -> None:
    from muscle.models import load_tokenizer

    experiment = demo.experiment
    train, _ = training_split(experiment, load_task(experiment.task))
    data = tokenise(train, load_tokenizer("testbed:v1"), 256, "answer")
    positions = sum(len(ids) - first for ids, first in zip(data.ids, data.first, strict=True))
    cache = reckon_cache(demo, experiment.resources)
    assert cache.bytes == positions * (96 + 128) * 4  # both bases' widths, fp32
    assert (cache.signals, cache.passes, cache.choice.cached) == (2, 3, True)


def test_seeds_multiply_steps_and_share_what_they_share(demo: Facts) -> None:
    def with_seeds(**changes: Any) -> Facts:
        return replace(demo, experiment=demo.experiment.model_copy(update=changes))

    def counts(facts: Facts) -> dict[str, int]:
        return {s.label: s.count for s in reckon(facts, facts.experiment.resources).steps}

    trained = counts(with_seeds(seeds=[0, 1]))
    assert trained["train old"] == trained["train compat"] == trained["cache new"] == 2
    assert trained["evaluate compat"] == 2
    several = with_seeds(compat_seeds=[1, 2, 3])
    shared = counts(several)
    assert (shared["train new"], shared["cache old"], shared["train compat"]) == (1, 1, 3)
    assert (shared["evaluate new"], shared["evaluate compat"]) == (1, 3)
    assert reckon_cache(several, several.experiment.resources).passes == 9


def test_a_second_old_is_counted(demo: Facts) -> None:
    def counts(**changes: Any) -> dict[str, int]:
        experiment = demo.experiment.model_copy(update=changes)
        facts = replace(demo, experiment=experiment)
        return {s.label: s.count for s in reckon(facts, experiment.resources).steps}

    plain, more = counts(), counts(noise_floor=True)
    assert {label for label in plain if plain[label] != more[label]} == {
        "train old",
        "evaluate old",
    }
    assert more["train old"] == plain["train old"] + 1
    assert more["evaluate old"] == plain["evaluate old"] + 1
    given = counts(noise_floor="somewhere")
    assert given["train old"] == 1 and given["evaluate old"] == 2
    assert counts(seeds=[0, 1], noise_floor=True) == counts(seeds=[0, 1])
    older = counts(also=["v1=a.json", "v0=b.json"])
    assert older["evaluate old"] == plain["evaluate old"] + 2
    assert older["train old"] == plain["train old"]


def test_online_teachers_are_held_and_cost_their_forwards(demo: Facts) -> None:
    def compat(**changes: Any) -> Any:
        resources = ResourcesConfig(**changes)
        return next(s for s in reckon(demo, resources).steps if s.label == "train compat")

    cached, online = compat(teachers="cached"), compat(teachers="online")
    assert online.memory.old_teacher >= demo.old.trained.weight_bytes
    assert cached.memory.old_teacher == 96 * 896 * 4  # its head alone
    assert online.flops > 1.3 * cached.flops
    labels = [s.label for s in reckon(demo, ResourcesConfig(teachers="online")).steps]
    assert not any(label.startswith("cache") for label in labels)
    assert compat(gradient_checkpointing=True).flops > cached.flops


def test_dollars_are_hours_times_gpus_times_price(demo: Facts) -> None:
    priced = find_hardware(HardwareConfig(gpu="h100", price_per_hour=3.0))
    facts = replace(demo, hardware=priced)
    for step in reckon(facts, ResourcesConfig(workers=2)).steps:
        assert step.dollars == pytest.approx(step.hours * step.gpus * 3.0)


# --- what fits ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A task of own data on two Llamas of 7B, of which there are configs and tokenizers only."""
    from tiny import make_tokenizer
    from transformers import LlamaConfig

    root = tmp_path_factory.mktemp("seven")
    for name in ("old", "new"):
        LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            vocab_size=32000,
        ).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    for split, size in (("train", 400), ("test", 100)):
        rows = [
            {"q": f"open a jar {i} " * (1 + i % 5), "c": ["turn the lid", "sleep"], "a": i % 2}
            for i in range(size)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"train": "train.jsonl", "test": "test.jsonl", "choices": "c", "target": "a"}
    settings = {
        "name": "seven",
        "task": {"name": "jars", "prompt": "Question: {{q}}\nAnswer:", **task},
        "old": {"model": str(root / "old")},
        "new": {"model": str(root / "new")},
        "compatibility": {"level": "token"},
        "hardware": {"gpu": "A100-80GB", "price_per_hour": 2.5},
    }
    (root / "seven.yaml").write_text(yaml.safe_dump(settings))
    return gather_facts(load_experiment(root / "seven.yaml"), str(root / "runs"))


def test_a_model_without_weights_is_planned(seven: Facts) -> None:
    reckoned = reckon(seven, seven.experiment.resources)
    train = reckoned.steps[0]
    assert train.parameters == 6_738_415_616  # Llama 2's own count
    assert train.adapter == 319_815_680  # r 128 on seven linear layers of 32 blocks
    assert train.memory.weights == 2 * train.parameters
    assert not advise(seven, reckoned)
    assert 20 * 2**30 < train.memory.total < 75 * 2**30


@pytest.mark.parametrize("gpu", ["A100-40GB", pytest.param("RTX-4090", marks=pytest.mark.slow)])
def test_what_does_not_fit_names_settings_that_fit(seven: Facts, gpu: str) -> None:
    facts = replace(seven, hardware=find_hardware(HardwareConfig(gpu=gpu)))
    given = ResourcesConfig(teachers="online")
    reckoned = reckon(facts, given)
    found, *actors = advise(facts, reckoned)
    assert found.needs > found.available and found.settings
    # The pools of both bases share the one GPU, unless each wants a whole one.
    assert [a.settings["gpus_per_actor"] for a in actors] == [1]
    after = reckon(facts, given.model_copy(update=found.settings))
    assert not after.without_room(("train",))
    most = max(s.memory.total for s in after.steps if s.kind == "train")
    assert most == found.then <= found.available
    line = advice_line(found)
    assert "does not fit: train " in line and "--set resources." in line


def test_a_base_beyond_one_gpu_is_partitioned_or_given_up(seven: Facts) -> None:
    less_than_its_weights = HardwareConfig(memory_gib=12, tflops=100)
    facts = replace(seven, hardware=find_hardware(less_than_its_weights))
    training, actors = advise(facts, reckon(facts, ResourcesConfig()))
    assert training.settings["deepspeed"].startswith("zero3")
    assert not actors.settings and "larger GPUs" in advice_line(actors)


# --- hardware and the command ---------------------------------------------------------


def test_cards_and_given_numbers() -> None:
    card = find_hardware(HardwareConfig(gpu="a100-80gb"))
    assert card.kind == "cuda" and card.memory == CARDS["A100-80GB"].memory_gib * 2**30
    assert card.rate("bfloat16") == pytest.approx(312e12 * 0.4)
    assert card.rate("float32") == pytest.approx(19.5e12 * 0.4)
    given = find_hardware(HardwareConfig(gpu="H100", memory_gib=70, tflops=500, utilisation=0.5))
    assert given.memory == 70 * 2**30 and given.rate("bfloat16") == 250e12
    with pytest.raises(UserError, match="A100-80GB, H100"):
        find_hardware(HardwareConfig(gpu="H1000"))
    with pytest.raises(UserError, match=r"hardware\.tflops is missing"):
        find_hardware(HardwareConfig(memory_gib=10))


def test_this_machine_is_measured() -> None:
    here = find_hardware(HardwareConfig())
    assert here.measured and here.memory > 2**28 and here.rate("float32") > 1e8


def test_the_command_prints_tables_of_the_demo(tmp_path: Path) -> None:
    arguments = ["plan", str(DEMO), "--output", str(tmp_path), *QUICK]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for text in ("train compat", "cache old", "evaluate new", "391 k", "everything fits", "points"):
        assert text in result.output, text
    assert "…" not in result.output  # nothing is cut at 80 columns
    assert not list(tmp_path.iterdir())


def test_json_parses_and_exit_code_3_says_no_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", str(DEMO), "--json", "--output", str(tmp_path)]
    small = ["hardware.memory_gib=0.5", "hardware.tflops=1"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *QUICK, *(word for change in small for word in ("--set", change))])
    assert stopped.value.code == 3
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and found["advice"][0]["steps"][0] == "train old"
    assert found["examples"] == 100 and 0 < found["smallest_nfr_difference"] < 1
    steps = {step["label"]: step for step in found["steps"]}
    assert steps["train new"]["memory"]["total"] > 2**20
    assert found["totals"]["hours"] == pytest.approx(sum(s["hours"] for s in steps.values()))


BAD = {
    "hardware.gpu=H1000": "hardware.gpu 'H1000' is unknown",
    "task.metric=rouge1": "rouge1",
    "old.model=./nowhere": "old: model directory './nowhere' does not exist",
    "resources.deepspeed=zero9": "zero2",
    "adapter.targets=[foo]": "adapter targets ['foo']",
}


@pytest.mark.parametrize("change", BAD)
def test_bad_input_is_one_line(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(DEMO), "--set", change])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("muscle: ") and "\n" not in error and BAD[change] in error


def test_a_missing_file_and_a_model_without_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        (["nowhere.yaml"], "nowhere.yaml"),
        ([str(DEMO), "--set", f"new.model={tmp_path}/empty"], "has no config.json"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["plan", *arguments])
        assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_numbers_read_well() -> None:
    assert amount(6.738e9) == "6.74 G" and amount(1.2e15, "FLOP") == "1.2 PFLOP"
    assert amount(12) == "12" and amount(8_170_000, "B") == "8.17 MB"
    assert [duration(h) for h in (0.001, 0.5, 3, 100)] == ["3.6 s", "30.0 min", "3.0 h", "4.2 d"]
