"""How `apriel compare` shows a comparison and a ranking: a table, or JSON."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from apriel_assets.comparing import Comparison
from apriel_assets.evaluation.comparison import OVERALL, ComparisonRow
from apriel_assets.evaluation.ranking import Place
from apriel_assets.terminal import open_console

_HEADINGS = ("task", "metric", "problems", "differ", "A", "B", "A - B (95%)", "p", "")


def print_comparison(found: Comparison, *, as_json: bool) -> None:
    """Print the rows of two models' comparison, over all tasks first."""
    if as_json:
        content = {"a": found.a, "b": found.b, "num_unpaired": found.num_unpaired}
        sys.stdout.write(
            json.dumps({**content, "rows": [row.as_json() for row in found.rows]}, indent=1) + "\n"
        )
        return
    table = Table(*_HEADINGS, title=f"A = {found.a}, B = {found.b}", title_justify="left")
    for row in found.rows:
        if row.task == OVERALL and table.row_count:
            table.add_section()
        table.add_row(*(Text(cell) for cell in _cells(row)))
    out = open_console()
    out.print(table)
    out.print(
        Text("p: sign-flip test; of single tasks adjusted for their number (Holm). KL: lower is better.")
    )
    if found.num_unpaired:
        out.print(
            Text(f"{found.num_unpaired} answers to problems that only one of the two was asked are left out.")
        )


def print_places(places: Mapping[str, Place], *, as_json: bool) -> None:
    """Print which places by accuracy the data support for each model."""
    if as_json:
        rows = [{"model": model, **asdict(place)} for model, place in places.items()]
        sys.stdout.write(json.dumps({"places": rows}, indent=1) + "\n")
        return
    table = Table("place", "model", title="by accuracy over all tasks", title_justify="left")
    for model, place in places.items():
        shown = str(place.best) if place.best == place.worst else f"{place.best}-{place.worst}"
        table.add_row(shown, Text(model))
    out = open_console()
    out.print(table)
    out.print(Text("Models whose places overlap could not be told apart (all pairs tested together, 5%)."))


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    return (
        row.task,
        row.metric,
        str(row.num_problems),
        str(row.num_differing),
        f"{row.a:.4f}",
        f"{row.b:.4f}",
        f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]",
        f"{row.p_value:.2g}",
        row.verdict,
    )
