"""Groups: their leaves, and scores of the whole equal to the harness's."""

import pytest
from task_fakes import answer, config, oracle, scores_of, write_task

from muscle.config import DataFiles, TaskConfig
from muscle.errors import UserError
from muscle.tasks import Group, load_suite, load_task
from muscle.tasks.suite import GroupMetric

ROWS = [{"q": f"Is {i} even?", "label": i % 2} for i in range(9)]
CHOICES = """
output_type: multiple_choice
training_split: train
test_split: test
tag: [yesno]
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
"""
GROUPS = {
    "all": """
group: all
task:
  - sciences
  - group: rest
    task: [four, {task: one, num_fewshot: 1}]
    aggregate_metric_list: {metric: acc, weight_by_size: false}
aggregate_metric_list:
  - {metric: acc, weight_by_size: true, filter_list: none}
  - {metric: acc_norm, weight_by_size: false}
  - {metric: f1, weight_by_size: true}
""",
    "sciences": """
group: sciences
group_alias: Sciences
task: [one, two, three]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
""",
    "list": "group: list\ntask: [two, three]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("groups")
    acc = "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    for size, name in enumerate(("one", "two", "three", "four"), start=3):
        extra = acc if name == "two" else ""  # it alone has no acc_norm
        write_task(path, name, CHOICES + extra, [{**r, "q": name + r["q"]} for r in ROWS[:size]])
    for name, yaml in GROUPS.items():
        (path / "yaml" / f"{name}.yaml").write_text(yaml)
    return path


def judged_by_name(suite):
    return {t.name: t.judge([answer(q) for q in t.queries()]) for t in suite.tasks}


@pytest.mark.parametrize(
    ("name", "shots", "leaves", "groups"),
    [
        ("all", None, ["one", "two", "three", "four"], ["all", "sciences", "all::rest"]),
        ("all", 2, ["one", "two", "three", "four"], ["all", "sciences", "all::rest"]),
        ("sciences", None, ["one", "two", "three"], ["sciences"]),
        ("list", None, ["two", "three"], ["list"]),
    ],
)
def test_groups_are_the_harness_own(folder, name, shots, leaves, groups):
    expected = oracle(str(folder / "yaml"), name, num_fewshot=shots)
    suite = load_suite(config(folder, name, num_fewshot=shots))
    assert [task.name for task in suite.tasks] == leaves == list(expected["samples"])
    assert [group.name for group in suite.groups] == groups
    judged = judged_by_name(suite)
    scores = {name: j.scores for name, j in judged.items()}
    sizes = {name: j.size for name, j in judged.items()}
    for leaf in leaves:
        assert scores[leaf] == pytest.approx(scores_of(expected["results"][leaf]))
        sample, query = expected["samples"][leaf][0], suite.tasks[leaves.index(leaf)].queries()[0]
        assert query.requests[0].context == sample["arguments"][0][0]
    for group in suite.groups:
        found = group.score(scores, sizes)
        assert found == pytest.approx(scores_of(expected["results"].get(group.name, {})))
        assert bool(found) == (group.name in expected.get("groups", {}))


def test_what_stands_in_a_group(folder):
    suite = load_suite(config(folder, "all"))
    whole, _, rest = suite.groups
    assert whole.tasks == ("one", "two", "three", "four", "one")  # twice: it counts twice
    assert whole.metrics[:2] == (
        GroupMetric("acc", ("none",), True),
        GroupMetric("acc_norm", None, False),
    )
    assert rest.tasks == ("four", "one") and not rest.metrics[0].weight_by_size


def test_a_score_is_a_mean_over_tasks():
    scores = {"a": {"acc,x": 0.2, "acc,y": 1.0}, "b": {"acc,x": 0.8}, "c": {"f1,x": 0.5}}
    sizes = {"a": 10, "b": 30, "c": 5}
    group = Group("g", ("a", "b", "c", "missing"), (GroupMetric("acc", None, True),))
    assert group.score(scores, sizes) == pytest.approx({"acc,x": 0.65, "acc,y": 1.0})
    plain = Group("g", ("a", "b"), (GroupMetric("acc", ("x", "z"), False),))
    assert plain.score(scores, sizes) == pytest.approx({"acc,x": 0.5})
    assert group.score({}, {}) == {} and Group("tag", ("a",)).score(scores, sizes) == {}


def test_tags_and_single_tasks(folder):
    suite = load_suite(config(folder, "yesno"))
    assert [task.name for task in suite.tasks] == ["four", "one", "three", "two"]
    assert suite.groups == [Group("yesno", ("four", "one", "three", "two"))]
    one = load_suite(config(folder, "one"))
    assert [task.name for task in one.tasks] == ["one"] and one.groups == []
    assert one.tasks[0].queries() == load_task(config(folder, "one")).queries()
    path = str(folder / "two_test.jsonl")
    own = TaskConfig(name="own", test=path, prompt="{{q}}", target="label", choices=["a", "b"])
    assert [task.name for task in load_suite(own).tasks] == ["own"]


def test_load_task_takes_no_group(folder):
    with pytest.raises(UserError, match=r"group of 4 tasks: .*\(one, two.*`muscle evaluate`"):
        load_task(config(folder, "all"))


def test_groups_that_can_not_be_had(folder, tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from muscle.tasks import harness

    with pytest.raises(UserError, match=r"'task.data_files': 'all' is a group of tasks with data"):
        load_suite(config(folder, "all", data_files=DataFiles(test="x.jsonl")))
    with pytest.raises(UserError, match=r"'task.metric': no metric 'acc_norm': task 'two' can"):
        load_suite(config(folder, "sciences", metric="acc_norm"))
    stock = TaskManager(include_path=lm_eval.__path__[0] + "/tasks/piqa", include_defaults=False)
    monkeypatch.setattr(harness, "_stock_manager", lambda: stock)
    write_task(tmp_path, "fine", CHOICES, ROWS)
    write_task(tmp_path, "unsafe", CHOICES + "unsafe_code: true\n", ROWS)
    for member, message in {
        "no_such": "group 'bad' lists 'no_such', which is no task",
        "piqa": "task 'bad': its data set on the hub can't be loaded.*check the network$",
        "{task: piqa, num_fewshot: 1}": "task 'bad': its data set on the hub can't be loaded",
        "unsafe": "task 'unsafe' runs code that the model wrote",
        "{group: inner, task: [unsafe]}": "task 'unsafe' runs code that the model wrote",
        "{task: fine, doc_to_image: q}": "task 'fine' needs images or sound",
    }.items():
        (tmp_path / "yaml" / "bad.yaml").write_text(f"group: bad\ntask:\n  - {member}\n")
        with pytest.raises(UserError, match=message):
            load_suite(config(tmp_path, "bad"))
    (tmp_path / "yaml" / "bad.yaml").write_text("group: bad\ntask: []\n")
    with pytest.raises(UserError, match="group 'bad' has no tasks"):
        load_suite(config(tmp_path, "bad"))
