"""The `apriel` command: run, plan, query, compare, report; `verifying` has verify, `release_cli` the rest.

Here: arguments, what the terminal shows, exit codes. Not here: deciding what is stale (planning) or doing it (assets).
Heavy imports stay inside the commands, so that `--help` and wrong arguments answer at once.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from apriel_assets import interrupts, release_cli, verifying
from apriel_assets.errors import UserError

if TYPE_CHECKING:
    from apriel_assets.workspace import Workspace

app = typer.Typer(
    help="Turn a full-attention LLM into hybrids you can trust and ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", help="YAML file, or the name of a shipped recipe.")
]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where artifacts live; else $APRIEL_HOME, else ./.apriel.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Overlay one recipe key: section.key=value. May be repeated."),
]
SelectOption = Annotated[
    str | None,
    typer.Option("--select", help="Only these assets and what they need: h1/h6,evals/* or a group name."),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", help="Stop after these assets: nothing that is made from them."),
]
VariantOption = Annotated[
    list[str] | None,
    typer.Option("--variant", help="Only this variant of the recipe and what it needs. May be repeated."),
]
VariantsOption = Annotated[bool, typer.Option("--variants", help="All variants of the recipe.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.callback()
def _main() -> None:
    pass


@app.command()
def run(
    recipe: RecipeOption = None,
    home: HomeOption = None,
    overlays: SetOption = None,
    select: SelectOption = None,
    until: UntilOption = None,
    variant: VariantOption = None,
    variants: VariantsOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and run nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring everything that the recipe asks for up to date. Runs nothing if nothing is stale."""
    if dry_run:
        return plan(recipe, home, overlays, select, until, variant, variants, as_json)
    from apriel_assets import terminal
    from apriel_assets.planning.plan import Plan
    from apriel_assets.workspace import open_workspace
    from resources import listeners

    chosen, last = _patterns(select, "--select"), _patterns(until, "--until")
    with open_workspace(recipe, home, overlays or (), write=True) as workspace:
        asked = _variants(workspace, variant, variants)
        workspace.selection(chosen, last, asked)  # what is misspelt is said before anything is shown
        with listeners.listening(interrupts.heed), terminal.run_display(quiet=as_json) as display:

            def on_plan(plan: Plan) -> None:
                interrupts.heed()
                display.on_plan(plan)

            done = workspace.run(chosen, until_patterns=last, variants=asked, on_plan=on_plan)
        if as_json:
            _print_json({"home": str(workspace.home), "ran": [[row.asset, row.partition] for row in done]})
        else:
            terminal.print_outcome(workspace, len(done), asked)


@app.command()
def plan(
    recipe: RecipeOption = None,
    home: HomeOption = None,
    overlays: SetOption = None,
    select: SelectOption = None,
    until: UntilOption = None,
    variant: VariantOption = None,
    variants: VariantsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would run, per asset and partition, why, and what it may take. Runs nothing."""
    from apriel_assets import terminal
    from apriel_assets.workspace import open_workspace

    chosen, last = _patterns(select, "--select"), _patterns(until, "--until")
    with open_workspace(recipe, home, overlays or ()) as workspace:
        asked = _variants(workspace, variant, variants)
        found = workspace.plan(workspace.selection(chosen, last, asked))
        note = workspace.network_note(found)
    if note:
        typer.echo(f"apriel: {note}", err=True)
    if as_json:
        _print_json(found.as_json())
    else:
        terminal.print_plan(found)


@app.command()
def query(
    sql: Annotated[
        str, typer.Argument(help="One SQL statement over the result tables, e.g. from evals limit 5.")
    ],
    home: HomeOption = None,
    output: Annotated[str, typer.Option("--format", help="table, json or csv")] = "table",
    to: Annotated[
        Path | None, typer.Option("--to", help="Write to this .csv or .parquet file instead.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, max=1e6, help="Seconds that the query may take.")
    ] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Run read-only SQL over the result tables. Works while a run is writing."""
    from apriel_assets import terminal
    from resources.export import check_name, write_file
    from resources.home import find_home
    from resources.lake import Lake

    if to is not None:
        check_name(to)
        with Lake(find_home(home)).arrow_batches(sql, timeout) as batches:
            count = write_file(batches, to)
        return _print_json({"file": str(to), "rows": count}) if as_json else typer.echo(to)
    allowed = ("table", "json", "csv")
    if output not in allowed:
        raise UserError(f"--format {output}: not a format; choose one of {', '.join(allowed)}")
    with Lake(find_home(home)).rows(sql, timeout) as (columns, batches):
        terminal.print_rows(columns, batches, "json" if as_json else output)


@app.command()
def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two models: h6 h7, a variant's forward_kl/h9 h9, or recipe:h6 where several recipes have it; several "
            "seeds of one with commas between. None: the recipe's ranking."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Name of the recipe to rank, if the home has several."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how two models differ on the same problems, by task and over all, and what cannot be told apart."""
    from apriel_assets import comparison_output
    from apriel_assets.comparing import compare_models, ranked_places
    from resources.home import find_home
    from resources.lake import Lake

    lake = Lake(find_home(home))
    if not models:
        comparison_output.print_places(ranked_places(lake, recipe), as_json=as_json)
    elif len(models) == 2:
        comparison_output.print_comparison(compare_models(lake, *models), as_json=as_json)
    else:
        raise UserError(f"{len(models)} models given; give two to compare, or none for the ranking")


@app.command()
def report(
    recipe: RecipeOption = None,
    home: HomeOption = None,
    overlays: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page from the result tables and print its path."""
    from apriel_assets.workspace import open_workspace

    with open_workspace(recipe, home, overlays or ()) as workspace:
        path = workspace.write_report()
    if as_json:
        _print_json({"report": str(path)})
    else:
        typer.echo(path)


release_cli.register(app)
verifying.register(app)


def _patterns(given: str | None, option: str) -> list[str] | None:
    if given is None:
        return None
    if not (patterns := [pattern.strip() for pattern in given.split(",") if pattern.strip()]):
        raise UserError(f"{option} is empty; name assets, patterns or groups, separated by commas")
    return patterns


def _variants(workspace: "Workspace", named: list[str] | None, every: bool) -> list[str]:
    if every and not workspace.recipe.variants:
        raise UserError(f"--variants: recipe {workspace.recipe.name} has none; give it a section `variants`")
    return list(workspace.recipe.variants) if every else list(named or ())


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1))


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn user errors into one line and exit 2, Ctrl-C into exit 130; anything else is our bug: a traceback."""
    try:
        yield
    except UserError as error:
        print(f"apriel: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output has gone (`apriel query ... | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        if interrupts.caused(error):
            _end_interrupted()
        if problem := _storage_problem(error):
            print(f"apriel: {problem}", file=sys.stderr)
            sys.exit(2)
        # Wrong arguments: typer raises click's exceptions or those of a private copy, depending on its version.
        if not (message := getattr(error, "format_message", None)):
            raise
        print(f"apriel: {message()}; see `apriel --help`", file=sys.stderr)
        sys.exit(2)


def _end_interrupted() -> NoReturn:
    print("apriel: interrupted; finished work is kept, run again to continue from there", file=sys.stderr)
    sys.exit(130)


def _storage_problem(error: Exception) -> UserError | None:
    if "resources.home" not in sys.modules:  # a command that failed before it opened a home
        return None
    from resources.home import storage_problem

    return storage_problem(error)


def main() -> None:
    """Entry point of the `apriel` command."""
    # Before torch loads. Threads that spin long while they wait starve each other on a machine that does anything
    # else; threads that sleep at once make small operations, as in decoding, several times slower (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    with interrupts.caught(), exit_codes():
        result = app(standalone_mode=False)
        if result == 130:  # typer turns Ctrl-C into this return value
            raise KeyboardInterrupt
        sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
