import pytest

from apriel_assets.evaluation.kept_answers import KeptAnswers, request_keys


def test_what_was_added_is_found_again_in_its_scope_alone(tmp_path):
    with KeptAnswers(tmp_path, "one") as kept:
        kept.add("a", [-1.5, True])
        kept.add("b", "text\nof two lines")
    with KeptAnswers(tmp_path, "one") as again:
        again.add("c", 2)
    assert KeptAnswers(tmp_path, "one").load() == {"a": [-1.5, True], "b": "text\nof two lines", "c": 2}
    assert KeptAnswers(tmp_path, "two").load() == {}


def test_a_torn_line_costs_itself_alone(tmp_path):
    with KeptAnswers(tmp_path, "one") as kept:
        kept.add("a", 1)
        kept.add("b", 2)
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    assert KeptAnswers(tmp_path, "one").load() == {"a": 1}
    whole = file.read_text().splitlines()[0]
    other = whole.replace("1,", "3,", 1)
    assert other != whole
    file.write_text(f'{other}\n5\n{{"b": 2}}\n\xff\n["c", 3]\n{whole}\n')
    assert KeptAnswers(tmp_path, "one").load() == {"a": 1}


def test_an_exception_leaves_the_answers_on_disk(tmp_path):
    def interrupted():
        with KeptAnswers(tmp_path, "one") as kept:
            kept.add("a", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert KeptAnswers(tmp_path, "one").load() == {"a": 1}


def test_keys_tell_kinds_requests_and_repeats_apart():
    keys = request_keys("one", [("a", {"x": 1, "y": 2}), ("a", {"y": 2, "x": 1}), ("b", {})])
    assert len(set(keys)) == 3, "the same request again is another one"
    assert keys == request_keys("one", [("a", {"x": 1, "y": 2}), ("a", {"x": 1, "y": 2}), ("b", {})])
    assert not set(keys) & set(request_keys("two", [("a", {"x": 1, "y": 2}), ("b", {})]))
