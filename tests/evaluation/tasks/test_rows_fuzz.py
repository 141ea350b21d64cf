"""Files of traces with anything in them: rows that can be encoded, or one line."""

import contextlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks import rows
from apriel_assets.evaluation.tasks.problems import make_problems
from apriel_assets.evaluation.tasks.rows import read_rows
from apriel_assets.evaluation.tasks.specs import TaskSpec
from tests.fuzzing import fuzz, lengths, mutated

ROWS = [{"prompt": f"what is {n} ?", "trace": f"it is {n} .", "answer": str(n)} for n in range(3)]
TABLE = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})


def reads_or_is_refused(path):
    with contextlib.suppress(UserError):
        for row in read_rows(TaskSpec(file=str(path))):
            "".join(row).encode()


@lengths(short=60, long=50_000)
def test_jsonl(num_inputs, tmp_path):
    path = tmp_path / "t.jsonl"
    escapes = st.sampled_from(
        ["", "\\ud800", "\\u0000", "NaN", "[" * 3000, "9" * 5000, "\ufeff", "\r", "\x85"]
    )

    def check(case):
        content, at, escape = case
        text = "\n".join(json.dumps(row, default=str, skipkeys=True) for row in content)
        path.write_bytes((text[:at] + escape + text[at:]).encode(errors="surrogatepass"))
        reads_or_is_refused(path)

    fuzz(num_inputs, st.tuples(mutated(ROWS).filter(_is_json), st.integers(0, 150), escapes), check)


def _is_json(content):
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(content, skipkeys=True) is not None
    return False


@lengths(short=60, long=50_000)
def test_bytes_of_parquet(num_inputs, tmp_path):
    path, buffer = tmp_path / "t.parquet", io.BytesIO()
    pq.write_table(TABLE, buffer)
    whole = buffer.getvalue()
    edits = st.lists(
        st.tuples(st.integers(0, len(whole)), st.binary(min_size=1, max_size=6)), min_size=1, max_size=3
    )

    def check(edits):
        changed = bytearray(whole)
        for at, new in edits:
            changed[at : at + len(new)] = new
        path.write_bytes(changed)
        reads_or_is_refused(path)

    fuzz(num_inputs, edits, check)


NO_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
)


@pytest.mark.parametrize(
    "prompt",
    [NO_UTF8, pa.array([2**62], pa.timestamp("us")), pa.array([["p"]]), pa.array([b"p"]), pa.nulls(1)],
)
def test_columns_that_are_no_text(prompt, tmp_path):
    pq.write_table(pa.table({"prompt": prompt, "answer": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"readable|text"):
        read_rows(TaskSpec(file=str(tmp_path / "t.parquet")))


def test_other_columns_are_not_read(tmp_path):
    other = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["p"], "answer": ["a"], "when": other}), tmp_path / "t.parquet")
    assert [row.prompt for row in read_rows(TaskSpec(file=str(tmp_path / "t.parquet")))] == ["p"]


@pytest.mark.parametrize(("most", "value"), [("_MOST_ROWS", 5000), ("_MOST_BYTES", 100_000)])
def test_few_bytes_that_stand_for_many_rows(most, value, monkeypatch, tmp_path):
    """A dictionary and run lengths: a million rows in a few kilobytes."""
    monkeypatch.setattr(rows, most, value)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["a problem"])
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"prompt": column, "answer": column}), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="split it"):
        read_rows(TaskSpec(file=str(path)))


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"prompt": "p", "answer": "a \\ud800"}\n')
    with pytest.raises(UserError, match=r"line 1: 'answer' holds half a character"):
        read_rows(TaskSpec(file=str(tmp_path / "t.jsonl")))


def test_a_million_tokens(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"prompt": "p", "trace": "a " * 10**6, "answer": "a"}) + "\n"
    )
    (problem,) = make_problems(TaskSpec(file=str(tmp_path / "t.jsonl"), split_by="file"), "train", 1, 0)
    assert problem.trace.count("a") == 10**6
