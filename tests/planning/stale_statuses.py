"""What Dagster's UI would call stale: `staleStatus` of every asset and partition, through its GraphQL schema."""

import contextlib
import sys
import types
from collections.abc import Iterator

import dagster as dg
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.test.utils import execute_dagster_graphql

MODULE = "definitions_under_test"
PARTITIONS = "{ assetNodes { assetKey { path } partitionKeys } }"


def stale_by_graphql(defs: dg.Definitions, instance: dg.DagsterInstance) -> set[tuple[str, str | None]]:
    """Return the assets and partitions that are not FRESH."""
    with _loaded(defs, instance) as context:
        nodes = execute_dagster_graphql(context, PARTITIONS).data["assetNodes"]
        found = set()
        statuses = execute_dagster_graphql(context, _query(nodes)).data
        for index, node in enumerate(nodes):
            asset = "/".join(node["assetKey"]["path"])
            for place, status in statuses[f"n{index}"][0].items():
                partition = node["partitionKeys"][int(place[1:])] if node["partitionKeys"] else None
                if status != "FRESH":
                    found.add((asset, partition))
        return found


def _query(nodes: list[dict]) -> str:
    parts = []
    for index, node in enumerate(nodes):
        path = ", ".join(f'"{part}"' for part in node["assetKey"]["path"])
        statuses = [f'p{i}: staleStatus(partition: "{key}")' for i, key in enumerate(node["partitionKeys"])]
        parts.append(
            f"n{index}: assetNodes(assetKeys: [{{path: [{path}]}}]) {{ {' '.join(statuses or ['p0: staleStatus'])} }}"
        )
    return "{ " + " ".join(parts) + " }"


@contextlib.contextmanager
def _loaded(defs: dg.Definitions, instance: dg.DagsterInstance) -> Iterator:
    module = types.ModuleType(MODULE)
    module.defs = defs
    sys.modules[MODULE] = module
    try:
        origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=MODULE, attribute="defs"))
        with WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as process:
            yield process.create_request_context()
    finally:
        del sys.modules[MODULE]
