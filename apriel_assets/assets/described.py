"""What the UI shows of an asset before anything is built: description, owners, tags, columns, where its code is.

Light: the code location loads this for every asset of a recipe.
"""

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._utils.schedules import get_smallest_cron_interval

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.tables.schemas import TABLES

SLICE_METADATA = "recipe_slice"
# The UI orders groups by name: numbered, they read as the procedure does. Elsewhere the plain name is used.
_STAGES = ("teacher", "h1", "supernet", "search", "release", "evals", "results", "automation")
_PROCEDURES = {"h1": "progressive", "supernet": "search", "search": "search", "release": "search"}
_MARKED = re.compile(r"\w*<\w+>\w*")
_NAMED_INPUTS = 8  # the report is made from everything: a list of 200 assets says less than a number
_LONGEST_TAG = 63  # Dagster's limit


def description(plan: AssetPlan) -> str:
    """Return what the asset is, what it is made from, which recipe values it reads and which tables it writes."""
    lines = [plan.description or inspect.cleandoc(plan.build.__doc__ or "")]
    if plan.name != plan.key:
        lines.append(f"`{plan.name}` of the recipe's variant `{plan.variant}`; runs when that is asked for.")
    if plan.upstream:
        names = [f"`{asset.key}`" for asset in plan.upstream]
        more = len(names) - _NAMED_INPUTS
        named = ", ".join(names[:_NAMED_INPUTS]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"Made from {named}.")
    if plan.reads:
        lines.append(
            f"Depends on {', '.join(f'`{name}`' for name in plan.reads)} (values: `{SLICE_METADATA}`)."
        )
    if plan.tables:
        lines.append(f"Writes {', '.join(f'`{name}`' for name in plan.tables)}; read with `apriel query`.")
    return "\n\n".join(lines)


def stage(plan: AssetPlan) -> str:
    """Return the asset's group as the UI calls it: `3_supernet`; a variant's assets are a group of their own."""
    if plan.variant is not None:
        return f"variant_{plan.variant}"
    return f"{_STAGES.index(plan.group) + 1}_{plan.group}" if plan.group in _STAGES else plan.group


def kinds(plan: AssetPlan) -> set[str]:
    """Return what the asset is made with, and what it is one of.

    A node of the lineage graph shows the last part of its key, and its kinds: without the part before, `h1/h6`,
    `h1/probes/h6` and `evals/h6` would look the same.
    """
    return {*plan.kinds, *plan.key.split("/")[-2:-1]}


def tags(plan: AssetPlan) -> dict[str, str]:
    """Return what one can search the assets by."""
    found = {"procedure": _PROCEDURES.get(plan.group, "both")}
    if plan.variant is not None and len(plan.variant) <= _LONGEST_TAG:
        found["variant"] = plan.variant
    if len(plan.recipe) <= _LONGEST_TAG:
        found["recipe"] = plan.recipe
    return found


def definition_metadata(plan: AssetPlan) -> dict[str, Any]:
    """Return the recipe slice, the columns of every table that the asset writes, and where its builder is."""
    shown: dict[str, Any] = {SLICE_METADATA: dg.JsonMetadataValue(plan.slice)}
    if plan.tables:
        first, *others = plan.tables
        shown |= {"dagster/column_schema": column_schema(first), "dagster/table_name": first}
        shown |= {f"columns_{name}": dg.MetadataValue.table_schema(column_schema(name)) for name in others}
    return shown | {"dagster/code_references": _code(plan)}


@functools.cache
def column_schema(table: str) -> dg.TableSchema:
    """Return the columns of a result table, with what each means and its unit."""
    return dg.TableSchema(
        [
            # As code where it has angle brackets, which the UI would take for HTML: `h<k>`.
            dg.TableColumn(name, type=str(dtype), description=_MARKED.sub(r"`\g<0>`", meaning))
            for name, (dtype, meaning) in TABLES[table].items()
        ]
    )


def freshness(plan: AssetPlan) -> dg.FreshnessPolicy | None:
    """Return when the asset is overdue; None: it is as good as its inputs, however old."""
    if plan.fresh_by is None:
        return None
    return dg.FreshnessPolicy.cron(plan.fresh_by, lower_bound_delta=get_smallest_cron_interval(plan.fresh_by))


def _code(plan: AssetPlan) -> dg.CodeReferencesMetadataValue:
    code = plan.build.__code__  # not inspect: that reads and parses the file for every asset
    source = dg.LocalFileCodeReference(
        file_path=str(Path(code.co_filename).resolve()),
        line_number=code.co_firstlineno,
        label=plan.build.__name__,
    )
    return dg.CodeReferencesMetadataValue(code_references=[source])
