"""What is in the memo survives; what is torn or foreign does not come in."""

import json
from concurrent.futures import ThreadPoolExecutor

from apriel_assets.scoring.memo import ScoreMemo

A, B = ("fa", "swa"), ("fa", "gdn")


def test_scores_come_back_exactly_in_another_process_too(tmp_path):
    figures = {"ois": 0.1 + 0.2, "log_q": -1e-300}
    ScoreMemo(tmp_path).add("scope", {A: figures})
    assert ScoreMemo(tmp_path).load("scope") == {A: figures}
    assert ScoreMemo(tmp_path).load("another") == {}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_memo_sees_what_others_write_later(tmp_path):
    first, second = ScoreMemo(tmp_path), ScoreMemo(tmp_path)
    assert first.load("scope") == {}
    second.add("scope", {B: {"ois": 1.0}})
    assert first.load("scope") == {B: {"ois": 1.0}}


def test_many_writers_lose_nothing(tmp_path):
    def write(number):
        ScoreMemo(tmp_path).add("scope", {("fa",) * number: {"ois": float(number)}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(1, 51)))
    assert len(ScoreMemo(tmp_path).load("scope")) == 50


def test_torn_and_foreign_files_are_ignored_with_a_warning(tmp_path, caplog):
    memo = ScoreMemo(tmp_path)
    memo.add("scope", {A: {"ois": 1.0}})
    whole = next((tmp_path / "scope").iterdir()).read_text()
    bad = {
        "torn.json": whole[: len(whole) // 2],
        "list.json": "[1, 2]",
        "later.json": json.dumps({**json.loads(whole), "format": 3}),
        "moved.json": json.dumps({**json.loads(whole), "scope": "another"}),
        "flipped.json": whole.replace("1.0", "3.0"),
        "text.json": json.dumps({"format": 1, "scope": "scope", "scores": [{"placement": 3, "figures": {}}]}),
    }
    for name, content in bad.items():
        (tmp_path / "scope" / name).write_text(content)
    (tmp_path / "scope" / ".draft.json.tmp").write_text("{")
    assert ScoreMemo(tmp_path).load("scope") == {A: {"ois": 1.0}}
    assert all(name in caplog.text for name in bad)


def test_scores_from_before_there_were_hashes_are_read(tmp_path):
    scores = [{"placement": A, "figures": {"ois": 1.0}}]
    (tmp_path / "scope").mkdir()
    (tmp_path / "scope" / "old.json").write_text(
        json.dumps({"format": 1, "scope": "scope", "scores": scores})
    )
    assert ScoreMemo(tmp_path).load("scope") == {A: {"ois": 1.0}}


def test_nothing_to_add_writes_nothing(tmp_path):
    ScoreMemo(tmp_path).add("scope", {})
    assert not list(tmp_path.iterdir())
