"""Problem texts from a JSONL or Parquet file, or from a hub data set: one problem a row."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from apriel_assets.errors import UserError
from apriel_assets.evaluation.tasks.answers import extract_answer
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.paths import expanded

_TRACES = ("trace", "completion")  # columns that hold a reference solution, unless the task names one
_BATCH_ROWS = 1024
_MOST_ROWS, _MOST_BYTES = 5_000_000, 8 << 30  # of one Parquet file, unpacked
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # JSON can write one, and nothing can encode it

Row = tuple[str, Mapping[str, Any]]  # where it stands, for errors; its columns


class ProblemText(NamedTuple):
    """What one row says, columns picked by the spec."""

    prompt: str  # in its template
    trace: str  # brings the white space that separates it from the prompt
    answer: str  # extracted, normalised
    content: str  # what makes two rows the same problem


def read_rows(spec: TaskSpec) -> list[ProblemText]:
    """Return every row of a file or hub data set, in its order, repeated prompts included.

    Raises:
        UserError: naming the file and line (or row) of what is missing, malformed, empty or no text.
    """
    rows = _read_file(expanded(spec.file), spec) if spec.file else _read_hub(spec)
    texts = [_to_text(spec, where, row) for where, row in rows]
    if not texts:
        raise UserError(f"{spec.file or spec.hub} has no rows; a task needs one problem a row")
    return texts


def _read_file(path: Path, spec: TaskSpec) -> Iterable[Row]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path} is neither .jsonl nor .parquet; convert it to one of them")
    if not path.is_file():
        raise UserError(f"no file {path}; check the task's file: in the recipe")
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path, spec)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode().removeprefix("\ufeff")  # some editors mark the beginning of a file
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8 (byte {error.start}: {error.reason})") from error
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is malformed JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            raise UserError(f"{where} is no JSON that can be read: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} holds {type(row).__name__}; each line must be one JSON object")
        yield where, row


def _read_parquet(path: Path, spec: TaskSpec) -> Iterator[Row]:
    """Yield rows with the columns that the task reads, a batch at a time: a small file can stand for any number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, characters = 0, 0
    try:
        with pq.ParquetFile(path) as opened:
            names = opened.schema_arrow.names
            if lacking := [name for name in (spec.prompt_field, spec.answer_field) if name not in names]:
                raise _no_column(str(path), lacking[0], names)
            wanted = {spec.prompt_field, spec.answer_field, spec.trace_field, *_TRACES}
            columns = [name for name in names if name in wanted]
            for batch in opened.iter_batches(_BATCH_ROWS, columns=columns):
                characters += batch.nbytes
                if number + batch.num_rows > _MOST_ROWS or characters > _MOST_BYTES:
                    raise UserError(
                        f"{path} has more than {_MOST_ROWS:,} rows or {_MOST_BYTES >> 30} GiB of text; split it"
                    )
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    # Text that is no UTF-8, dates that no calendar has.
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(f"{path} is no readable Parquet file: {error}") from error


def _read_hub(spec: TaskSpec) -> Iterator[Row]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"hub data {spec.hub} needs `datasets`: pip install 'apriel-assets[hub]'") from error
    try:
        rows: Any = datasets.load_dataset(
            str(spec.hub), spec.hub_subset, split=spec.hub_split, revision=spec.hub_revision
        )
    except Exception as error:  # datasets raises a dozen types: unknown id, subset, split, no network
        raise UserError(
            f"hub data {spec.hub} (subset {spec.hub_subset}, split {spec.hub_split}) does not load: {error}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{spec.hub} row {number}", row


def _to_text(spec: TaskSpec, where: str, row: Mapping[str, Any]) -> ProblemText:
    question = _text(where, row, spec.prompt_field)
    answer_text = _text(where, row, spec.answer_field)
    answer = extract_answer(answer_text, spec.answer_match, spec.answer_pattern)
    if answer is None:
        raise UserError(
            f"{where}: {spec.answer_match} {spec.answer_pattern or ''} finds no answer in "
            f"{spec.answer_field!r} ({answer_text[:60]!r}); change answer_match or answer_pattern"
        )
    prompt = spec.prompt_template.replace("{prompt}", question)
    trace = _text(where, row, _trace_field(spec, row))
    if not prompt[-1].isspace() and not trace[0].isspace():
        trace = " " + trace
    return ProblemText(prompt=prompt, trace=trace, answer=answer, content=" ".join(question.split()))


def _trace_field(spec: TaskSpec, row: Mapping[str, Any]) -> str:
    if spec.trace_field is not None:
        return spec.trace_field
    return next((name for name in _TRACES if name in row), spec.answer_field)


def _text(where: str, row: Mapping[str, Any], column: str) -> str:
    """Return a column's text; numbers are written out, since answers often are numbers."""
    if column not in row:
        raise _no_column(where, column, row)
    value = row[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is {type(value).__name__}, not text; convert it")
    if not value.strip():
        raise UserError(f"{where}: {column!r} is empty; fill it or remove the row")
    if half := _HALF_CHARACTER.search(value):
        raise UserError(f"{where}: {column!r} holds half a character, {half.group()!r}; write it whole")
    return value


def _no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    there = textwrap.shorten(", ".join(map(str, names)), 200, placeholder=", ...")
    return UserError(f"{where} has no {column!r} but {there}: set the task's *_field keys")
