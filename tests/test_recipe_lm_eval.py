"""lm-eval tasks in a recipe: what a list may say, what is refused before anything runs, and the rows of a run."""

import json

import pytest
import yaml

pytest.importorskip("lm_eval")

from apriel_assets.definitions import plan_assets
from apriel_assets.errors import UserError
from apriel_assets.evaluation.lm_eval_config import SUITES
from apriel_assets.recipe import load_recipe
from apriel_assets.recipe_lm_eval import check_before_run, data_to_fetch
from apriel_assets.workspace import open_workspace
from tests.conftest import tiny_recipe
from tests.evaluation.lm_eval_files import write_tasks

JUDGE = {"model": "judge", "base_url": "http://localhost:9/v1", "api_key_env": "JUDGE_KEY"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def written(tiny_teacher, tmp_path):
    """Write the tiny recipe with these lm-eval entries, and return its path."""

    def write(entries, **evals):
        content = tiny_recipe(tiny_teacher)
        for section in ("supernet", "search", "release", "costs"):
            del content[section]
        content["h1"] = {"schedule": [1], "distill": content["h1"]["distill"], "loo": {"problems": 2}}
        content["evals"] |= {"lm_eval": entries, **evals}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "tiny.yaml")

    return write


def partitions(path):
    assets = plan_assets(load_recipe(path))
    return {key: own.partitions for key, own in assets.items() if key.startswith("lm_evals/")}


def test_without_tasks_there_is_no_asset(written):
    assert partitions(written([])) == {}


def test_names_tasks_and_suites_are_one_list(written):
    recipe = load_recipe(
        written(
            ["apriel_copy", {"task": "mmlu", "num_fewshot": 5}, {"suite": "published_suite", "limit": 3}],
            judge=JUDGE,
        )
    )
    names = [task.task for task in recipe.evals.lm_eval]
    suite = [task.task for task in SUITES["published_suite"]]
    assert names == ["apriel_copy", "mmlu", *suite]
    assert {task.limit for task in recipe.evals.lm_eval[2:]} == {3}
    assert {"mmlu", "gsm8k", "hendrycks_math500", "aime24", "mt_bench", "apriel_long_context"} < set(suite)


def test_an_edited_task_is_another_partition_of_every_model(written):
    before = partitions(written(["apriel_recall", "apriel_copy"]))
    after = partitions(written(["apriel_recall", {"task": "apriel_copy", "limit": 7}]))
    assert set(before) == set(after) == {"lm_evals/teacher", "lm_evals/h1"}
    for model in before:
        assert before[model][0] == after[model][0]
        assert before[model][1] != after[model][1]
    faster = partitions(written(["apriel_recall", {"task": "apriel_copy", "batch_size": 7}]))
    assert faster == before, "how fast it runs changes no row"


def test_another_judge_changes_mt_bench_alone(written, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["a", "b"]}))
    entries = ["apriel_copy", {"task": "mt_bench", "questions": str(tmp_path / "q.jsonl")}]
    before = partitions(written(entries, judge=JUDGE))["lm_evals/teacher"]
    moved = partitions(written(entries, judge={**JUDGE, "base_url": "http://elsewhere/v1"}))[
        "lm_evals/teacher"
    ]
    other = partitions(written(entries, judge={**JUDGE, "model": "stricter"}))["lm_evals/teacher"]
    assert moved == before
    assert (other[0], other[1] == before[1]) == (before[0], False)


@pytest.mark.parametrize(
    ("entries", "evals", "message"),
    [
        (["apriel_recal"], {}, r"no task 'apriel_recal'; did you mean apriel_recall"),
        (["gsm9k"], {}, r"no task 'gsm9k'; did you mean .*gsm8k"),
        (["mt_bench"], {}, r"lm_eval has mt_bench, whose answers a judge grades; set evals\.judge="),
        ([{"suite": "publised"}], {}, r"no suite 'publised'; suites are published_suite"),
        ([{"task": "mmlu", "shots": 5}], {}, r"evals\.lm_eval\.0\.shots is not a key"),
        ([{"task": "mmlu", "limit": 0}], {}, "mmlu: limit=0 must be at least 1"),
        (["apriel_copy", "apriel_copy"], {}, "asks for apriel_copy twice in the same way"),
        (
            [{"task": "apriel_copy", "include_path": "/no/such"}],
            {},
            "include_path /no/such: no such directory",
        ),
        ([], {"judge": {**JUDGE, "base_url": "localhost:8000"}}, "is no address; write e.g. http"),
        ([], {"judge": {**JUDGE, "base_url": "http://key@host/v1"}}, "must hold no key"),
        ([], {"judge": {**JUDGE, "api_key_env": "sk-123"}}, "give the name, not the key"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(written, entries, evals, message):
    with pytest.raises(UserError, match=message) as refused:
        plan_assets(load_recipe(written(entries, **evals)))
    assert "sk-123" not in str(refused.value)


def test_missing_local_data_is_refused_before_anything_runs(written, tmp_path):
    folder = write_tasks(tmp_path)
    with pytest.raises(UserError, match=r"local_gone .* reads /no/such\.jsonl, which is not there"):
        plan_assets(load_recipe(written([{"task": "local_gone", "include_path": folder}])))
    assert partitions(written([{"task": "local_group", "include_path": folder}]))


def test_tasks_that_need_the_network_say_so(written, tmp_path, apriel):
    path = written([{"task": "mmlu", "limit": 1}, {"task": "gsm8k", "limit": 1}, "apriel_long_context"])
    assert data_to_fetch(load_recipe(path)) == {"cais/mmlu": ["mmlu"], "openai/gsm8k": ["gsm8k"]}
    code, out, err = apriel("plan", "--recipe", path, "--home", tmp_path / "home", "--json")
    assert (code, "mmlu" in out) == (0, True)
    assert (
        "needs the network: lm-eval data that this machine does not have: cais/mmlu (for mmlu); openai/gsm8k"
        in err
    )
    code, out, err = apriel("run", "--recipe", path, "--home", tmp_path / "home")
    assert code == 2
    assert "HF_HUB_OFFLINE is set: fetch them while online, or take the tasks out" in err
    assert not list((tmp_path / "home").glob("artifacts/*"))


def test_data_that_was_fetched_needs_no_network(written, tmp_path):
    recipe = load_recipe(written([{"task": "gsm8k", "limit": 1}]))
    assert data_to_fetch(recipe)
    (tmp_path / "hf" / "hub" / "datasets--openai--gsm8k").mkdir(parents=True)
    assert data_to_fetch(recipe) == {}


def test_without_a_network_the_reason_is_that(written, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    recipe = load_recipe(written([{"task": "gsm8k", "limit": 1}]))
    (key,) = partitions(written([{"task": "gsm8k", "limit": 1}]))["lm_evals/teacher"]
    with pytest.raises(UserError, match=r"127\.0\.0\.1 does not answer"):
        check_before_run(recipe, [("lm_evals/teacher", key)])
    check_before_run(recipe, [("evals/teacher", key)])  # nothing of it will run


def test_a_judge_without_its_key_is_refused_before_anything_runs(written, tmp_path, monkeypatch):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["a", "b"]}))
    path = written([{"task": "mt_bench", "questions": str(tmp_path / "q.jsonl")}], judge=JUDGE)
    (key,) = partitions(path)["lm_evals/teacher"]
    planned = [("lm_evals/teacher", key)]
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="the judge judge needs a key: set JUDGE_KEY"):
        check_before_run(load_recipe(path), planned)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    check_before_run(load_recipe(path), planned)


def test_a_run_fills_the_tables_and_goes_on_after_an_interruption(written, tmp_path, monkeypatch):
    folder, home = write_tasks(tmp_path), tmp_path / "home"
    path = written([{"task": "apriel_copy", "limit": 4}, {"task": "local_group", "include_path": folder}])
    monkeypatch.setattr("apriel_assets.evaluation.lm_eval_model._BATCH_TOKENS", {"cpu": 120})
    from apriel_assets.evaluation.kept_answers import KeptAnswers

    added, add = [], KeptAnswers.add

    def add_until(most):
        def kept(self, key, value):
            add(self, key, value)
            added.append(key)
            if len(added) == most:
                raise UserError("interrupted")

        added.clear()
        monkeypatch.setattr(KeptAnswers, "add", kept)

    with open_workspace(path, home, write=True) as workspace:
        workspace.run(["teacher"])
        add_until(3)
        with pytest.raises(UserError, match="interrupted"):
            workspace.run(["lm_evals/teacher"])
        add_until(None)
        workspace.run(["lm_evals/teacher"])
        assert len(added) == 4 - 3 + 9 * 3 + 9, (
            "three of four were kept; then a task of three choices and one of one"
        )
        workspace.run(["lm_evals/*"])
        rows = workspace.lake.read("lm_evals", "tiny").to_pylist()
        samples = workspace.lake.read("lm_eval_samples", "tiny").to_pylist()
        assert workspace.plan(workspace.selection(["lm_evals/*"], None)).rows == ()
    models = {(row["model"], row["asked"], tuple(row["placement"])) for row in rows}
    assert models == {
        (model, asked, placement)
        for model, placement in (("teacher", ("fa",) * 4), ("h1", next(p for m, _, p in models if m == "h1")))
        for asked in ("apriel_copy", "local_group")
    }
    assert "mamba" in next(placement for model, _, placement in models if model == "h1")
    teachers = [row for row in samples if row["model"] == "teacher" and row["task"] == "apriel_copy"]
    assert sorted(row["doc_id"] for row in teachers) == [0, 1, 2, 3]
    assert all(row["stderr"] is not None for row in rows if row["metric"] in ("acc", "accuracy"))


def test_layer_scores_name_their_task_as_a_recipe_does(written):
    path = written([])
    recipe = load_recipe(
        path, ["h1.loo={metric: lm_eval, lm_eval_task: {task: apriel_recall, num_fewshot: 0}}"]
    )
    assert recipe.h1.loo.asked.task == "apriel_recall"
    scored = load_recipe(path, ["h1.loo={metric: lm_eval, lm_eval_task: mmlu}"])
    assert data_to_fetch(scored, [("layer_scores", None)]) == {"cais/mmlu": ["mmlu"]}
    assert data_to_fetch(scored, [("h1/h1", None)]) == {}
    with pytest.raises(UserError, match="no task 'apriel_recal'"):
        plan_assets(load_recipe(path, ["h1.loo={metric: lm_eval, lm_eval_task: apriel_recal}"]))
