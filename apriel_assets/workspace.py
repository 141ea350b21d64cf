"""A recipe and a home, opened together: what every command and the code location start from."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.publishing import tidy_lake
from apriel_assets.definitions import build_defs, plan_assets, variant_assets, without_unfit_variants
from apriel_assets.planning.execute import bring_up_to_date
from apriel_assets.planning.expected import STORED
from apriel_assets.planning.from_capacity import capacity_estimate
from apriel_assets.planning.plan import Plan, PlanRow, make_plan
from apriel_assets.planning.selection import of_variants, select, until
from apriel_assets.recipe import Recipe, load_recipe, save_recipe
from apriel_assets.recipe_lm_eval import check_before_run, data_to_fetch, network_note
from apriel_assets.recipe_problems import check_problem_numbers
from resources.artifact_store import ArtifactStore, digest
from resources.file_hashes import stamp
from resources.home import find_home, open_instance, prepare_home, run_lock
from resources.lake import Lake

REPORT = "report.html"


@dataclass(frozen=True)
class Workspace:
    """One recipe applied to one home."""

    recipe: Recipe
    home: Path
    instance: dg.DagsterInstance
    assets: dict[str, AssetPlan]  # the recipe's and its variants'
    defs: dg.Definitions

    @property
    def lake(self) -> Lake:
        return Lake(self.home)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.home)

    def selection(
        self,
        patterns: Sequence[str] | None,
        until_patterns: Sequence[str] | None,
        variants: Sequence[str] = (),
    ) -> set[str] | None:
        """Return the assets that --variant, --select and --until leave; None: all but the variants'.

        Raises:
            UserError: a variant that the recipe does not have, or a pattern that matches nothing.
        """
        if not patterns and not until_patterns and not variants:
            return None
        if variants:
            chosen = of_variants(self.assets, variants, patterns)
        else:
            chosen = select(self.assets, patterns) if patterns else set(self._considered(None))
        return chosen & until(self.assets, until_patterns) if until_patterns else chosen

    def plan(self, selection: Collection[str] | None = None) -> Plan:
        """Return what is stale now, of the selected assets, or of all but the variants'."""
        estimate = capacity_estimate(self.recipe)
        considered = self._considered(selection)
        return make_plan(considered, self.defs, self.instance, self.store, estimate).within(selection)

    def _considered(self, selection: Collection[str] | None) -> dict[str, AssetPlan]:
        """Return the recipe's own assets and of its variants' the selected ones."""
        return {
            key: own
            for key, own in self.assets.items()
            if own.variant is None or (selection is not None and key in selection)
        }

    def run(
        self,
        patterns: Sequence[str] | None = None,
        *,
        until_patterns: Sequence[str] | None = None,
        variants: Sequence[str] = (),
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> list[PlanRow]:
        """Rebuild what is stale (of the selected assets and what they need); return what ran.

        Raises:
            UserError: raised by a step's input, a failed blocking check kept something back, a task has fewer problems
                than a step will ask for, or the network that a step will need is not there.
        """
        selection = self.selection(patterns, until_patterns, variants)
        plan = self.plan(selection)
        check_problem_numbers(
            self.recipe, {row.asset for row in plan.rows} | {key for key, _ in plan.following}
        )
        check_before_run(self.recipe, [row.place for row in plan.ready])
        # Not before the plan stands: a recipe that does not get so far must leave the home as it is.
        save_recipe(self.recipe, self.home)

        def planned(found: Plan) -> None:
            tidy_lake(self.lake, self.recipe.name, self.assets, found.settled)
            on_plan(found)

        return bring_up_to_date(
            self._considered(selection),
            self.defs,
            self.instance,
            self.store,
            selection=selection,
            plan=plan,
            on_plan=planned,
        )

    def needed_artifacts(self, patterns: Sequence[str] | None = None) -> set[Path]:
        """Return the directories of finished artifacts whose weights something unfinished will read.

        Args:
            patterns: what will be finished, with what it needs; None: all.
        """
        plan = self.plan(self.selection(patterns, None))
        pending = {row.place for row in plan.rows if row.expected_from != STORED}
        pending |= {place for place, expected in plan.following.items() if expected.source != STORED}
        reads = {
            (key, part)
            for asset, partition in pending
            if self.assets[asset].reads_weights
            for key, parts in self.assets[asset].reads_of(partition).items()
            for part in parts
        }
        return {artifact.path for place, artifact in plan.fresh.items() if place in reads}

    def network_note(self, plan: Plan) -> str | None:
        """Return one line about data that the plan's steps will fetch; None: nothing."""
        return network_note(data_to_fetch(self.recipe, [row.place for row in plan.ready]))

    def report_is_current(self) -> bool:
        """Tell whether the report page was drawn from this recipe's tables as they are."""
        page = self.home / REPORT
        return page.is_file() and page.read_text().endswith(self._drawn_from())

    def _drawn_from(self) -> str:
        # Not by what is newer: a clock may have been set back in between.
        tables = sorted(self.home.glob(f"lake/*/{self.recipe.name}/*.parquet"))
        stamps = [[str(path.relative_to(self.home)), *stamp(path)[:2]] for path in tables]
        return f"<!-- drawn from {digest([self.recipe.name, stamps])} -->\n"

    def write_report(self) -> Path:
        """Write the report page from what the lake holds now; return its path."""
        from resources.atomic import replaced_file

        # Stamps first: what changes while the page is drawn makes it old.
        drawn_from = self._drawn_from()
        page = report_page(self.lake, self.recipe.name)
        with replaced_file(self.home / REPORT) as temporary:
            temporary.write_text(f"{page.rstrip()}\n{drawn_from}")
        return self.home / REPORT


def report_page(lake: Lake, recipe: str) -> str:
    """Return the report of one recipe, from what the lake holds now, as HTML."""
    from apriel_assets.reporting.recommendation import compared_models
    from apriel_assets.reporting.report import REPORT_TABLES, render_report
    from resources.provenance import environment

    tables = {name: lake.read(name, recipe) for name in REPORT_TABLES}
    tables["ablations"] = lake.read("ablations", recipe, variants=True)
    # Of the problems only those of a few models are shown, out of perhaps thousands of files.
    samples = [f"evals/{model}" for model in compared_models(tables)]
    tables["eval_samples"] = lake.read("eval_samples", recipe, samples)
    return render_report(tables, recipe=recipe, provenance=environment())


@contextmanager
def open_workspace(
    recipe: str | None, home: Path | None, overlays: Sequence[str] = (), *, write: bool = False
) -> Iterator[Workspace]:
    """Load the recipe and open the home; with `write`, hold the home's run lock.

    Raises:
        UserError: a wrong recipe, a home that cannot be written, another run on it.
    """
    loaded = load_recipe(recipe or "quickstart", overlays)
    path = find_home(home)
    prepare_home(path)
    with run_lock(path) if write else nullcontext(), open_instance(path) as instance:
        own = plan_assets(loaded)
        if overlays and not any(overlay.startswith("variants") for overlay in overlays):
            loaded = without_unfit_variants(loaded, own)
        assets = {**own, **variant_assets(loaded, own)}
        yield Workspace(
            recipe=loaded, home=path, instance=instance, assets=assets, defs=build_defs(loaded, path, assets)
        )
