"""What task files say, read without the harness: names, groups, tags, and whose data they read."""

from pathlib import Path

import pytest
from lm_eval_files import write_tasks

pytest.importorskip("lm_eval")

from apriel_assets.errors import UserError
from apriel_assets.evaluation.lm_eval_index import check_name, hub_data, is_on_this_machine, is_ours, names_in
from apriel_assets.lm_eval_plugin import TASKS


def test_names_are_those_that_the_harness_finds(tmp_path):
    from lm_eval.tasks._index import TaskIndex

    write_tasks(tmp_path)
    (tmp_path / "lines.yaml").write_text('"task": "in_quotes"\n"tag": "one_tag"\ninclude: base\n')
    (tmp_path / "tags.yaml").write_text("tag:\n  - first_tag\n  - 'second_tag'\ntask: tagged\n")
    (tmp_path / "inline.yaml").write_text("task: inlined\ntag: [third_tag, first_tag]\n")
    (tmp_path / "base").write_text("output_type: multiple_choice\n")
    ours = set(names_in(Path(TASKS)))
    assert ours == set(TaskIndex.build([Path(TASKS)]))
    assert set(names_in(tmp_path)) == set(TaskIndex.build([tmp_path])) - ours
    assert {path.name for path in names_in(tmp_path)["first_tag"]} == {"tags.yaml", "inline.yaml"}


def test_our_names_are_ours_and_theirs_are_not(tmp_path):
    assert is_ours("apriel_recall", None)
    assert is_ours("apriel_retrieval", None)
    assert not is_ours("mmlu", None)
    assert is_ours("local_choice", write_tasks(tmp_path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mmlu", {"cais/mmlu"}),  # a group of groups of tags
        ("hendrycks_math500", {"HuggingFaceH4/MATH-500"}),  # its own over what it includes
        ("gpqa_diamond_cot_zeroshot", {"Idavidrein/gpqa"}),
        ("aime24", {"Maxwell-Jia/AIME_2024"}),
        ("apriel_long_context", set()),
        ("apriel_procedural", set()),
    ],
)
def test_data_of_a_task_or_group(name, data):
    check_name(name, None)
    assert hub_data(name, None) == data


def test_local_data_are_no_hub_data(tmp_path):
    folder = write_tasks(tmp_path)
    assert hub_data("local_group", folder) == set()
    assert hub_data("local_hub", folder) == {"someone/something"}
    with pytest.raises(UserError, match="local_gone"):
        hub_data("local_gone", folder)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean apriel_needle_32k"):
        check_name("apriel_needle_33k", None)
    with pytest.raises(UserError, match="`lm_eval ls tasks` lists them"):
        check_name("&&&&&&&&", None)


def test_fetched_data_are_found(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not is_on_this_machine("cais/mmlu")
    (tmp_path / "datasets" / "cais___mmlu").mkdir(parents=True)
    assert is_on_this_machine("cais/mmlu")
