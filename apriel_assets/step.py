"""One step in a process of its own: `python -m apriel_assets.step ORDER_FILE`, started by a launcher, never by hand.

It builds what the order names with the same builder as an inline step, from the recipe that lies beside the order, and
writes how it ended. Under `accelerate launch` every process builds, since training needs them all; the first one's
result counts, the others' is thrown away.
"""

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from dagster_pipes import PipesContext, open_dagster_pipes

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.errors import UserError
from apriel_assets.progress import Progress, silent
from resources.artifact_store import Artifact, ArtifactStore, Draft
from resources.launchers.failures import is_transient
from resources.launchers.order import RECIPE, Outcome, StepOrder, read_order, write_outcome
from resources.launchers.supervisor import die_with_parent

_TELL_EVERY_S = 0.5  # progress goes through a file


def main() -> int:
    """Carry out the order; 0, 2 after the user's error, 1 after any other."""
    die_with_parent()
    file = Path(sys.argv[1])
    order, rank = read_order(file), int(os.environ.get("RANK", "0"))
    write_outcome(order, rank, Outcome(state="running"))
    # Messages of several processes would mix, and the parent expects one sender.
    with open_dagster_pipes() if rank == 0 else nullcontext() as pipes:
        try:
            with _logging_to(pipes):
                outcome = _carry_out(order, file.with_name(RECIPE), rank, _told(pipes) if pipes else silent)
        except Exception as error:
            outcome = _failed(error)
        write_outcome(order, rank, outcome)
    return 0 if outcome.state == "done" else 2 if outcome.user_error else 1


def _carry_out(order: StepOrder, recipe: Path, rank: int, progress: Progress) -> Outcome:
    from apriel_assets.assets.build import build_artifact
    from apriel_assets.definitions import all_assets
    from apriel_assets.recipe import load_recipe
    from resources.provenance import environment

    plan = all_assets(load_recipe(str(recipe)))[order.asset]
    if plan.code_version != order.code_version:
        raise UserError(f"a file that {order.asset} reads was changed while it was started; run again")
    home, processes = Path(order.home), _met_others()
    with TemporaryDirectory(dir=order.directory) as scratch:
        draft = Draft(path=Path(order.draft) if rank == 0 else Path(scratch))
        build_artifact(
            plan,
            draft,
            inputs=_inputs(ArtifactStore(home), order, plan),
            address=order.address,
            partition=order.partition,
            home=home,
            progress=progress,
            is_recorded=rank == 0,
        )
        _write_tables(draft)
    return Outcome(
        state="done",
        figures=draft.figures,
        data_version=draft.data_version,
        environment={"processes": processes, **environment()} if rank == 0 else {},
    )


def _met_others() -> int:
    """Return how many processes build together, once they have found each other."""
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected > 1:
        from accelerate import Accelerator

        found = Accelerator().num_processes
        # Each would train alone and write over the others.
        assert found == expected, f"{expected} processes were started, and {found} train together"
    return expected


def _write_tables(draft: Draft) -> None:
    (draft.path / "tables").mkdir()
    for name, table in draft.tables.items():
        pq.write_table(table, draft.path / "tables" / f"{name}.parquet")


def _inputs(store: ArtifactStore, order: StepOrder, plan: AssetPlan) -> dict[str, dict[str | None, Artifact]]:
    names = {plan.calls(given): given.name for given in plan.upstream}
    found: dict[str, dict[str | None, Artifact]] = {}
    for asset, partition, address in order.inputs:
        artifact = store.find(names[asset], address)
        if artifact is None:
            raise UserError(f"{order.asset} needs {asset}, which was damaged or deleted; run again")
        found.setdefault(asset, {})[partition] = artifact
    return found


def _failed(error: Exception) -> Outcome:
    from resources.home import storage_problem

    shown = error if isinstance(error, UserError) else storage_problem(error)
    return Outcome(
        state="failed",
        error=str(shown) if shown else f"{type(error).__name__}: {error}",
        user_error=shown is not None,
        transient=is_transient(error),
        traceback="".join(traceback.format_exception(error)),
    )


def _told(pipes: PipesContext) -> Progress:
    """Return a progress callback that tells the parent, twice a second at most."""
    last = float("-inf")

    def tell(done: int, total: int, **figures: float) -> None:
        nonlocal last
        if done < total and time.monotonic() - last < _TELL_EVERY_S:
            return
        last = time.monotonic()
        message: dict[str, Any] = {"done": done, "total": total, "figures": figures}
        pipes.report_custom_message({"progress": message})

    return tell


@contextmanager
def _logging_to(pipes: PipesContext | None) -> Iterator[None]:
    """Send our own packages' log lines to the run's event log."""
    if pipes is None:
        yield
        return
    handlers = pipes.log.handlers
    own = [logging.getLogger(name) for name in ("apriel_assets", "resources")]
    for logger in own:
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    yield


if __name__ == "__main__":
    sys.exit(main())
