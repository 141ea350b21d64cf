"""How a build is handed to whatever runs it: this process, or one that is started for the step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.build import build_artifact
from apriel_assets.assets.step_progress import step_progress
from apriel_assets.errors import UserError
from resources.artifact_store import Artifact, Draft
from resources.home import Home
from resources.launchers.execution import Execution
from resources.launchers.order import StepOrder

Inputs = Mapping[str, Mapping[str | None, Artifact]]


def launched_build(
    plan: AssetPlan,
    partition: str | None,
    *,
    address: str,
    inputs: Inputs,
    home: Home,
    execution: Execution,
    context: dg.AssetExecutionContext,
    provenance: dict[str, Any],
) -> Callable[[Draft], None]:
    """Return what fills a draft, wherever the recipe wants the step to run; it completes the provenance.

    It raises UserError if the home was packed without weights that the step reads.
    """

    def build(draft: Draft) -> None:
        _refuse_left_out(plan, inputs)
        progress = step_progress(plan, partition, context)

        def inline() -> None:
            build_artifact(
                plan,
                draft,
                inputs=inputs,
                address=address,
                partition=partition,
                home=Path(home.path),
                progress=progress,
            )

        order = _order(plan, partition, draft, address, inputs, home)
        how = execution.config.of(plan.name, plan.group)
        provenance.update(execution.run(order, how, draft, inline=inline, context=context, progress=progress))

    return build


def _refuse_left_out(plan: AssetPlan, inputs: Inputs) -> None:
    for asset, parts in inputs.items():
        for artifact in parts.values():
            if plan.reads_weights and artifact.left_out:
                raise UserError(
                    f"{plan.key} needs the weights of {asset}, which were left behind when the home was packed; remove "
                    f"{artifact.path} and run again: it is then built anew"
                )


def _order(
    plan: AssetPlan, partition: str | None, draft: Draft, address: str, inputs: Inputs, home: Home
) -> StepOrder:
    return StepOrder(
        asset=plan.key,
        partition=partition,
        address=address,
        code_version=plan.code_version,
        home=home.path,
        draft=str(draft.path),
        inputs=tuple(
            (asset, part, artifact.address)
            for asset, parts in inputs.items()
            for part, artifact in parts.items()
        ),
    )
