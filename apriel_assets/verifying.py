"""`apriel verify`: reads all of a home, says what is damaged, one line each, and what would be built again."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apriel_assets.errors import UserError

if TYPE_CHECKING:
    from resources.verification import Verification

DAMAGED = 3  # exit code


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    home: Annotated[
        Path | None, typer.Option("--home", help="Where artifacts live; else $APRIEL_HOME, else ./.apriel.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Compare every file of the home with the hash that was taken when it was written; exit code 3 if one differs."""
    from resources.home import find_home
    from resources.home_format import check_format
    from resources.verification import verify_home

    path = find_home(home)
    if not path.is_dir():
        raise UserError(f"there is no home {path}; give another with --home or APRIEL_HOME")
    check_format(path)
    with _bar(quiet=as_json) as progress:
        found = verify_home(path, progress)
    rebuilt = _rebuilt(path, found)
    if as_json:
        typer.echo(json.dumps({"home": str(path), **found.as_json(), "rebuilds": rebuilt}, indent=1))
    else:
        for line in _lines(found, rebuilt):
            typer.echo(line)
    if found.damage:
        raise typer.Exit(DAMAGED)


def _lines(found: "Verification", rebuilt: list[list[str | None]] | None) -> Iterator[str]:
    for damage in found.damage:
        yield f"{damage.path}: {damage.what} | mend: {damage.repair}"
    if found.leftovers:
        yield (
            f"{len(found.leftovers)} leftovers of writers that were killed, {found.leftover_bytes:,} bytes: harmless, "
            f"may be deleted while nothing runs; the first is {found.leftovers[0]}"
        )
    if rebuilt:
        names = ", ".join(asset + (f"[{part}]" if part else "") for asset, part in rebuilt if asset)
        yield f"`apriel run` would build again: {names}"
    elif rebuilt is None:
        yield "what `apriel run` would build again is not known: recipe.yaml does not load"
    damaged = f"{len(found.damage)} damaged" if found.damage else "all as they were written"
    yield (
        f"{found.num_artifacts} artifacts, {found.num_files} files, {found.num_bytes:,} bytes read: {damaged}"
    )


def _rebuilt(home: Path, found: "Verification") -> list[list[str | None]] | None:
    """Return which damaged assets and partitions the recipe that was run last still needs; None: it does not load."""
    damaged = {(damage.asset, damage.address) for damage in found.damage if damage.asset}
    if not damaged:
        return []
    from apriel_assets.workspace import open_workspace

    try:
        with open_workspace(str(home / "recipe.yaml"), home) as workspace:
            rows = workspace.plan(set(workspace.assets)).rows  # the variants' too
    except UserError:
        return None
    # The plan's reason names the artifact's directory.
    named = {f"artifacts/{asset}/{address}" for asset, address in damaged}
    return [[row.asset, row.partition] for row in rows if any(name in row.reason for name in named)]


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("verify"), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True, quiet=quiet), transient=True) as shown:
        task = shown.add_task("verify", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
