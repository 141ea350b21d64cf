"""`apriel compare` and `apriel query --to` as a user types them, on a made-up home."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.tables.made_up_home import MODELS, write_home


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    path = tmp_path_factory.mktemp("home")
    write_home(path)
    return path


@pytest.fixture
def apriel(apriel, made_up):
    """The command on the made-up home unless a test names another."""

    def call(*arguments, home=made_up):
        return apriel(*arguments, "--home", home)

    return call


def test_json_has_over_all_and_each_task_with_verdicts(apriel):
    code, out, _ = apriel("compare", "h6", "h7", "--json")
    found = json.loads(out)
    rows = {(row["task"], row["metric"]): row for row in found["rows"]}
    assert (code, found["a"], found["b"], found["num_unpaired"]) == (0, "h6", "h7", 0)
    assert set(rows) == {
        (task, metric)
        for task in ("all tasks", "copy", "recall")
        for metric in ("accuracy", "reverse_kl_nats")
    }
    assert rows["all tasks", "accuracy"]["difference"] == pytest.approx((1 + 18) / 80)
    assert rows["recall", "accuracy"]["better"] == "a"
    assert rows["copy", "accuracy"]["better"] is None
    assert rows["copy", "accuracy"]["verdict"].startswith("no detectable difference")
    assert rows["all tasks", "reverse_kl_nats"]["better"] == "a"  # less KL


def test_table_says_it_in_words(apriel):
    code, out, _ = apriel("compare", "sft", "merge")
    assert code == 0
    assert "A = sft, B = merge" in out
    assert "no detectable difference" in out
    assert "B is better" not in out


def test_a_model_does_not_differ_from_itself(apriel):
    _, out, _ = apriel("compare", "h7", "h7", "--json")
    assert {(row["better"], row["p_value"]) for row in json.loads(out)["rows"]} == {(None, 1.0)}


def test_without_models_the_ranking(apriel):
    code, out, _ = apriel("compare", "--recipe", "quick", "--json")
    places = {row["model"]: (row["best"], row["worst"]) for row in json.loads(out)["places"]}
    assert (code, set(places)) == (0, set(MODELS))
    assert places["h7"] == (5, 5)
    assert places["sft"] == places["merge"] == (3, 4)
    assert "1-2" in apriel("compare")[1]


def test_recipes_and_seeds(apriel, made_up, tmp_path):
    home = shutil.copytree(made_up, tmp_path / "home")
    write_home(home, recipe="slow")
    code, _, err = apriel("compare", "h6", "h7", home=home)
    assert code == 2
    assert "quick:h6, slow:h6" in err
    code, out, _ = apriel("compare", "quick:h6,slow:h6", "quick:h7,slow:h7", "--json", home=home)
    assert (code, json.loads(out)["rows"][0]["num_problems"]) == (0, 160)
    code, _, err = apriel("compare", home=home)
    assert (code, "quick, slow" in err) == (2, True)
    code, _, err = apriel("compare", "quick:h6,slow:h6", "quick:h7,slow:h7,slow:h7", home=home)
    assert (code, "as many" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["h6", "mergee"], "nearest: merge"),
        (["slow:h6", "h7"], "nearest: h6, quick:h6"),
        (["h6"], "two to compare"),
        (["h6", "h7", "sft"], "two to compare"),
        (["--recipe", "slow"], "the home has quick"),
    ],
)
def test_wrong_names_are_one_line_and_exit_2(arguments, expected, apriel):
    code, out, err = apriel("compare", *arguments)
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert expected in err


def test_home_whose_evals_kept_no_problems_says_what_to_do(apriel, made_up, tmp_path):
    home = shutil.copytree(made_up, tmp_path / "old")
    shutil.rmtree(home / "lake" / "eval_samples")
    (home / "catalog.duckdb").unlink()
    code, _, err = apriel("compare", "h6", "h7", home=home)
    assert (code, "apriel run --home" in err) == (2, True)


def test_query_to_a_file(apriel, tmp_path):
    code, out, _ = apriel("query", "from ranking", "--to", tmp_path / "r.parquet")
    assert (code, out.strip()) == (0, str(tmp_path / "r.parquet"))
    assert pq.read_table(tmp_path / "r.parquet").num_rows == len(MODELS)
    code, out, _ = apriel("query", "from ranking", "--to", tmp_path / "r.csv", "--json")
    assert json.loads(out)["rows"] == len(MODELS)
    assert (tmp_path / "r.csv").read_text().count("\n") == len(MODELS) + 1


@pytest.mark.parametrize(
    ("name", "expected"), [("r.xls", ".csv or .parquet"), ("none/r.csv", "no directory")]
)
def test_file_that_cannot_be_written_is_one_line(name, expected, apriel, tmp_path):
    code, _, err = apriel("query", "from ranking", "--to", tmp_path / name)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert expected in err
