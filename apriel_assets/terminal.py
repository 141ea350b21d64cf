"""What the commands show: progress bars, the plan, result rows, the final table."""

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from apriel_assets.errors import UserError
from apriel_assets.planning.plan import Plan, Totals
from apriel_assets.printable import printable
from apriel_assets.workspace import REPORT, Workspace
from resources import listeners

_MOST_SHOWN = 10_000  # rows of a table: more are for programs


class RunDisplay:
    """A bar for the whole plan and one for the step that reports progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole = progress.add_task("plan", total=None, figures="")
        self._steps: dict[str, TaskID] = {}
        self._total: int | None = None

    def on_plan(self, plan: Plan) -> None:
        """Show how much of what was ever planned in this run is done."""
        for task in self._steps.values():
            self._progress.remove_task(task)
        self._steps.clear()
        names = [row.asset + (f"[{row.partition}]" if row.partition else "") for row in plan.ready]
        # What is stale only through an upstream change is not in the first plan, so the total can grow.
        upcoming = len(plan.ready) + len(plan.downstream)
        self._total = max(self._total or 0, upcoming)
        self._progress.update(
            self._whole,
            description="all assets",
            total=self._total or 1,
            completed=(self._total - upcoming) if self._total else 1,
            figures=f"next: {names[0]}" if names else "up to date",
        )

    def on_progress(self, step: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Show one step's progress and its latest figures."""
        if step not in self._steps:
            self._steps[step] = self._progress.add_task(step, total=total, figures="")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._progress.update(self._steps[step], completed=done, total=total, figures=shown)


@contextmanager
def run_display(*, quiet: bool) -> Iterator[RunDisplay]:
    """Show a run's progress on stderr; `quiet` shows nothing."""
    console = Console(stderr=True, quiet=quiet)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}", style="dim"),
    ]
    with Progress(*columns, console=console) as progress:
        display = RunDisplay(progress)
        with listeners.listening(display.on_progress):
            try:
                yield display
            except UserError:
                progress.live.transient = True  # leave nothing but the one line that says what is wrong
                raise


def open_console() -> Console:
    """Return a console on stdout."""
    # Piped into a file or another program, a table must not be cut to 80 columns.
    return Console(width=None if sys.stdout.isatty() else 240)


def print_plan(plan: Plan) -> None:
    """Print what would run and why, what it may take, and what may follow."""
    console = open_console()
    if not plan.rows:
        console.print("Up to date: nothing would run.")
        return
    with_gpus = plan.totals.gpu_seconds > 0
    title = f"{len(plan.ready)} to run" + (
        f", {len(plan.rows) - len(plan.ready)} kept back" if len(plan.ready) < len(plan.rows) else ""
    )
    table = Table("asset", "partition", "why", "expected", title=title, title_justify="left")
    unit, unit_seconds = ("GPU-hours", 3600) if plan.totals.gpu_seconds >= 3600 else ("GPU seconds", 1)
    if with_gpus:
        table.add_column(unit, justify="right")
    table.add_column("expected from")
    for row in plan.rows:
        cells = [row.asset, row.partition or "", row.reason, _seconds(row.seconds)]
        cells += [_number(row.gpu_seconds, unit_seconds)] if with_gpus else []
        table.add_row(*(Text(cell) for cell in (*cells, row.expected_from or "")))
    console.print(table)
    console.print(Text(f"In all {_total(plan.totals, with_gpus)}."))
    if plan.downstream:
        console.print(Text(f"May follow, if what they are made from changes: {', '.join(plan.downstream)}"))
        following = Totals.of(plan.following.values())
        console.print(Text(f"With what may follow, up to {_total(following, with_gpus)} more."))


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.1f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _number(seconds: float | None, unit_seconds: float) -> str:
    return "not known" if seconds is None else f"{seconds / unit_seconds:,.1f}"


def _total(totals: Totals, with_gpus: bool) -> str:
    gpus = f", {_gpu_time(totals.gpu_seconds)}" if with_gpus else ""
    unknown = f", {totals.unknown} of them not known" if totals.unknown else ""
    return f"{_seconds(totals.seconds)}{gpus}{unknown}"


def _gpu_time(seconds: float) -> str:
    return f"{seconds:.1f} GPU seconds" if seconds < 3600 else f"{seconds / 3600:,.1f} GPU-hours"


def print_rows(columns: Sequence[str], batches: Iterator[list[tuple]], output: str) -> None:
    """Print query results as a table of the first rows, or all as JSON (list of objects) or CSV."""
    if output == "json":
        separator = "["
        for row in itertools.chain.from_iterable(batches):
            named = dict(zip(columns, map(_finite, row), strict=True))
            sys.stdout.write(separator + json.dumps(named, default=str))
            separator = ", "
        sys.stdout.write("]\n" if separator == ", " else "[]\n")
    elif output == "csv":
        writer = csv.writer(_Shown(), lineterminator="\n")
        writer.writerow(columns)
        for rows in batches:
            writer.writerows(rows)
    else:
        _print_table(columns, list(itertools.islice(itertools.chain.from_iterable(batches), _MOST_SHOWN + 1)))


class _Shown:
    """Standard output, without control sequences where a person looks at it."""

    def write(self, text: str) -> None:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


def _print_table(columns: Sequence[str], rows: Sequence[tuple]) -> None:
    table = Table()
    for column in columns:
        table.add_column(Text(printable(column)))
    for row in rows[:_MOST_SHOWN]:
        table.add_row(*(Text(printable(_cell(value))) for value in row))
    console = open_console()
    console.print(table)
    more = len(rows) > _MOST_SHOWN
    console.print(
        f"the first {_MOST_SHOWN} rows; all with --format csv or --to" if more else f"{len(rows)} rows"
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def print_outcome(workspace: Workspace, num_run: int, variants: Sequence[str] = ()) -> None:
    """Print the leaderboard, what these variants changed, and where everything is."""
    from apriel_assets.reporting.summary import SUMMARY_TABLES, audit_lines, summary_columns, summary_rows

    console = open_console()
    tables = {name: workspace.lake.read(name, workspace.recipe.name) for name in SUMMARY_TABLES}
    rows = summary_rows(tables)
    if rows:
        table = Table(title=f"{workspace.recipe.name}", title_justify="left")
        for name, heading in summary_columns().items():
            table.add_column(heading, justify="left" if name == "model" else "right")
        for row in rows:
            table.add_row(*(Text(row[name]) for name in summary_columns()))
        console.print(table)
    if variants:
        _print_ablations(workspace, variants)
    for line in audit_lines(tables):
        console.print(Text(line))
    console.print(f"{num_run} assets and partitions were run." if num_run else "Up to date: nothing was run.")
    # To draw the page again takes seconds, longer than all else where nothing was run.
    kept = not num_run and workspace.report_is_current()
    console.print(Text(f"Report   {workspace.home / REPORT if kept else workspace.write_report()}"))
    console.print(Text(f"UI       APRIEL_HOME={workspace.home} make ui, then http://127.0.0.1:3000"))
    console.print(Text(f'SQL      apriel query "from evals limit 5" --home {workspace.home}'))


def _print_ablations(workspace: Workspace, variants: Sequence[str]) -> None:
    from apriel_assets.evaluation.comparison import OVERALL

    rows = workspace.lake.read("ablations", workspace.recipe.name, variants=True).to_pylist()
    table = Table(
        "model", "against", "metric", "variant - base (95%)", "better", title="variants", title_justify="left"
    )
    for row in rows:
        if row["variant"] in variants and row["task"] == OVERALL:
            difference = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            better = row["better"] or "no detectable difference"
            cells = (row["model"], row["base_model"], row["metric"], difference, better)
            table.add_row(*(Text(cell) for cell in cells))
    if table.row_count:
        open_console().print(table)
