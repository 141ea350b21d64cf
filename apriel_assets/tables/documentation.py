"""The page docs/tables.md, from the schemas: `python -m apriel_assets.tables.documentation > docs/tables.md`."""

import re
import sys
from collections.abc import Iterable

import pyarrow as pa

from apriel_assets.tables.meanings import TABLE_MEANINGS
from apriel_assets.tables.schemas import LAKE_COLUMNS, TABLES
from apriel_assets.tables.views import FUNCTIONS, VIEWS

_MARKED = re.compile(r"\w*<\w+>\w*")
_INTRODUCTION = """\
# Tables, views and macros

**Question.** What is in the result tables, and what does each column mean?

Written from the schemas by `python -m apriel_assets.tables.documentation > docs/tables.md`; a test holds it against
them, so a column that changes its name or type shows in review. The same texts are the catalog's comments (`select
table_name, column_name, comment from duckdb_columns()`). How to ask: [queries](queries.md).

Names and types are stable: columns are added, and one that must change is announced in `CHANGELOG.md`. Files of an
older version show null in columns that they lack. Intervals are 95%. Every table also has:

"""


def tables_page() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION, _table((name, _kind(kind), text) for name, (kind, text) in LAKE_COLUMNS.items())]
    parts.append("\n## Tables\n")
    for name, columns in TABLES.items():
        parts.append(f"\n### {name}\n\n{TABLE_MEANINGS[name]}\n\n")
        parts.append(_table((column, _kind(kind), text) for column, (kind, text) in columns.items()))
    parts.append("\n## Views and table macros\n")
    for name, view in VIEWS.items():
        heading = f"{name}({', '.join(view.parameters)})" if view.parameters else name
        parts.append(f"\n### {heading}\n\n{view.meaning}\n\n")
        parts.append(_table((column, "", text) for column, text in view.columns.items()))
    parts.append("\n## Functions\n\n")
    parts += [f"- `{name}({', '.join(one.parameters)})`: {one.meaning}\n" for name, one in FUNCTIONS.items()]
    return "".join(parts)


def _kind(dtype: pa.DataType) -> str:
    return f"list of {_kind(dtype.value_type)}" if pa.types.is_list(dtype) else str(dtype)


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    rows = list(rows)
    typed = any(kind for _, kind, _ in rows)
    lines = (
        ["", "| column | type | meaning |", "|---|---|---|"]
        if typed
        else ["", "| column | meaning |", "|---|---|"]
    )
    for name, kind, text in rows:
        # As code where it has angle brackets, which a browser would take for HTML.
        cells = [f"`{name}`", *([kind] if typed else []), _MARKED.sub(r"`\g<0>`", text).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(tables_page())
