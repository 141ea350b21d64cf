"""Only results of the same weights, asked alike, are held against each other: a retrained model has not drifted."""

from apriel_assets.assets.reevals import compared_by, last_results
from apriel_assets.evaluation.drift import reeval_rows
from apriel_assets.tables.schemas import to_table
from resources.artifact_store import ArtifactStore
from resources.lake import Lake

SETTINGS = {"accuracy": {"num_problems": 8}, "seed": 0, "placement": None}
FIGURES = {"model": "h1", "task": "recall", "metric": "accuracy", "num_problems": 8}


def inputs(checkpoint):
    return {"teacher": "t", "h1/h1": checkpoint}


def row(value):
    return {**FIGURES, "value": value, "low": value, "high": value}


def evaluate(home, checkpoint, value, seed=0):
    """Record what `evals` found, in the store and in the lake."""
    rows, store = to_table("evals", [{**row(value), "seed": seed}]), ArtifactStore(home)
    address = store.address("evals/h1", f"{seed}", inputs(checkpoint), "recall")
    record = {"inputs": inputs(checkpoint), "recipe_slice": {**SETTINGS, "seed": seed}, "partition": "recall"}
    store.get_or_create("evals/h1", address, record, lambda draft: draft.tables.update(evals=rows))
    where = {"recipe": "r", "asset": "evals/h1", "partition": "recall"}
    Lake(home).publish({"evals": rows}, version=address, **where)


def reevaluate(home, date, checkpoint, value):
    alike = compared_by(SETTINGS, inputs(checkpoint), "h1/h1", "recall")
    rows = reeval_rows(date, [{**row(value), **alike}], last_results(home, "r", "h1/h1", "h1", date))
    where = {"recipe": "r", "asset": "automation/reevals/h1", "partition": date}
    Lake(home).publish({"reevals": rows}, version=date, **where)
    return rows.to_pylist()[0]


def test_a_retrained_model_is_held_against_its_own_evals(tmp_path):
    evaluate(tmp_path, "old", 0.5)
    assert reevaluate(tmp_path, "2026-05-01", "old", 0.5)["last_value"] == 0.5
    evaluate(tmp_path, "new", 0.9)
    found = reevaluate(tmp_path, "2026-05-02", "new", 0.9)
    assert (found["last_value"], found["last_date"], found["drifted"]) == (0.9, None, False)
    found = reevaluate(tmp_path, "2026-05-03", "new", 0.8)
    assert (found["last_value"], found["last_date"], found["drifted"]) == (0.9, "2026-05-02", True)


def test_other_settings_are_not_compared(tmp_path):
    evaluate(tmp_path, "old", 0.1, seed=1)
    found = reevaluate(tmp_path, "2026-05-01", "old", 0.9)
    assert (found["last_value"], found["drifted"]) == (None, False)


def test_evals_that_nobody_knows_the_origin_of_are_not_compared(tmp_path):
    rows = to_table("evals", [{**row(0.1), "seed": 0}])
    Lake(tmp_path).publish({"evals": rows}, recipe="r", asset="evals/h1", version="gone")
    assert last_results(tmp_path, "r", "h1/h1", "h1", "2026-05-01") == []
