"""`apriel query` against whoever asks too much or for something else: one line, nothing read, nothing written."""

import contextlib
import json

import pytest
from hypothesis import strategies as st

from apriel_assets import terminal
from apriel_assets.errors import UserError
from resources import lake as module
from resources.export import write_file
from resources.lake import Lake
from tests.fuzzing import fuzz, lengths
from tests.resources.test_lake import rows

FOREIGN = [
    "from '{secret}'", "from glob('{home}/../*')", "from read_text('{secret}')", "from read_blob('{secret}')",
    "from sniff_csv('{secret}')", "from parquet_metadata('{secret}')", "from read_text('{home}/lake/../secret.csv')",
    "from query('from ''{secret}''')", "from duckdb_secrets()", "import database '{home}'", "attach '{secret}' as x",
    "from read_parquet('http://127.0.0.1:9/x.parquet')", "from 'http://127.0.0.1:9/x.csv'", "from sql", "from lines",
    "load json", "install json", "from sqlite_scan('{secret}', 'x')", "pragma profiling_output='{home}/x'",
    "set memory_limit='1TB'", "call force_checkpoint()", "export database '{home}/x'", "use memory", "checkpoint",
    "select getenv('HOME')", "copy evals to '{home}/lake/x.parquet'", "pragma enable_profiling='json'; select 1",
]  # fmt: skip
# What would take for ever, or more memory than there is.
ENDLESS = [
    "from range(1000000000000000)",
    "select count(*) from range(100000000) a, range(100000000) b",
    "with recursive t as (select 1 as n union all select n + 1 from t) select max(n) from t",
    "select list(x) from range(1000000000000) t(x)",
]


WORDS = """select from where evals * ( ) ' " ; -- /* $1 $x ? , . :: [ ] { } null 1 1e999 -1 'x' with recursive as
union all order by limit offset pivot unnest list_zip current_setting pragma_version query ranking mcnemar_p over
partition cast varchar blob interval x -> ü \0 \ud800""".split()  # noqa: SIM905  a page of quotes else


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    found = Lake(tmp_path_factory.mktemp("queried") / "a home [ü] *")
    found.publish({"evals": rows(1)}, recipe="r", asset="evals/h4", version="v1", partition="recall")
    (found.home / "secret.csv").write_text("a\nTOPSECRET\n")
    return found


def files_of(lake):
    return {path: path.read_bytes() for path in lake.home.rglob("*") if path.is_file()}


def test_a_home_whose_name_is_a_pattern_is_read(lake):
    assert lake.query("select count(*) from evals")[1] == [(3,)]
    assert lake.read("evals", "r").num_rows == 3


@pytest.mark.parametrize("sql", FOREIGN)
def test_other_files_settings_and_writes_are_refused(lake, sql):
    lake.query("select 1")
    before = files_of(lake)
    with pytest.raises(UserError) as refused:
        lake.query(sql.format(secret=lake.home / "secret.csv", home=lake.home))
    assert "TOPSECRET" not in str(refused.value)
    assert files_of(lake) == before


@pytest.mark.parametrize("sql", ENDLESS)
def test_what_does_not_end_is_ended(lake, sql, monkeypatch):
    monkeypatch.setattr(module, "_MOST_MEMORY", 200 << 20)
    with (
        pytest.raises(UserError, match=r"took longer than 0.3 s|Out of Memory"),
        lake.rows(sql, 0.3) as (_, batches),
    ):
        for _ in batches:
            pass
    assert lake.query("select 1")[1] == [(1,)]


def test_files_written_from_what_does_not_end_leave_nothing(lake, tmp_path):
    for name in ("x.csv", "x.parquet"):
        with (
            pytest.raises(UserError, match=r"took longer than 0.3 s"),
            lake.arrow_batches(ENDLESS[0], 0.3) as batches,
        ):
            write_file(batches, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@lengths(short=25, long=100_000)
def test_sql_of_any_kind(lake, num_inputs):
    words = st.sampled_from(WORDS)
    before = files_of(lake)

    def check(sql):
        with contextlib.suppress(UserError), lake.rows(sql, 20) as (_, batches):
            list(batches)

    fuzz(num_inputs, st.one_of(st.lists(words, max_size=12).map(" ".join), st.text(max_size=40)), check)
    assert files_of(lake) == {**files_of(lake), **before}


def test_a_table_shows_the_first_rows_and_programs_get_all(apriel, lake, monkeypatch):
    monkeypatch.setattr(terminal, "_MOST_SHOWN", 3)
    _, out, _ = apriel("query", "from range(5)", "--home", lake.home)
    assert "the first 3 rows" in out
    for output in ("json", "csv"):
        code, out, _ = apriel("query", "from range(25000)", "--home", lake.home, "--format", output)
        found = [row["range"] for row in json.loads(out)] if output == "json" else out.split()[1:]
        assert (code, [int(value) for value in found]) == (0, list(range(25_000)))
    assert apriel("query", "from evals where false", "--home", lake.home, "--json")[1] == "[]\n"


def test_the_time_is_the_users(apriel, lake):
    code, out, err = apriel("query", ENDLESS[1], "--home", lake.home, "--timeout", "0.2")
    assert (code, out) == (2, "")
    assert err == "apriel: the query took longer than 0.2 s; ask for less, or give --timeout\n"


def test_control_sequences_in_data_do_not_reach_a_terminal(apriel, lake):
    _, out, _ = apriel("query", "select chr(27) || '[2J' as a", "--home", lake.home)
    assert "\x1b" not in out
    assert "\\x1b[2J" in out
