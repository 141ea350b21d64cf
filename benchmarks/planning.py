"""How long planning takes where there is much to plan, and what it adds to a run.

    python benchmarks/planning.py [--quickstart-home HOME]

Two homes are recorded without building anything: every artifact is a file with a number, every materialization an
event as Dagster writes it.

- `steps`: 50 layers, 8 H-k steps, 10 budgets. Location load and plan, each in a fresh process; a plan after an edit at
  the root, of which everything may follow; a run that has nothing to do. Targets: load <= 3 s without importing torch,
  plan <= 5 s, no-op run <= 10 s.
- `models`: 200 models, 30 eval tasks. Plan when nothing is stale, with a further task, and with all evals edited.
  Target: <= 15 s.

With the home of a finished quickstart, what a run added to the builders' own seconds. Target: <= 10%.
Writes benchmarks/results/planning.json. Times are wall seconds; run it on a quiet machine.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import yaml
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from apriel_assets.assets.asset_plan import AssetPlan, input_name
from apriel_assets.assets.evals import EvaluatedModel, eval_assets
from apriel_assets.assets.materialize import to_dagster
from apriel_assets.assets.records import asset_key
from apriel_assets.assets.results import result_assets
from apriel_assets.assets.teacher import teacher_assets
from apriel_assets.definitions import plan_assets
from apriel_assets.planning.plan import make_plan
from apriel_assets.recipe import Recipe, load_recipe
from resources.artifact_store import ArtifactStore
from resources.home import Home, open_instance, prepare_home
from resources.launchers.execution import Execution
from resources.provenance import environment

LAYERS, MODELS, TASKS = 50, 200, 30
SCHEDULE = [25, 27, 30, 34, 37, 40, 42, 44]
BUDGETS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25]

LOAD = """
import sys, time
start = time.perf_counter()
from apriel_assets.definitions import defs
location = defs()
location.resolve_asset_graph()
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def steps_recipe(directory: Path) -> Path:
    """Write a recipe of 8 H-k steps and 10 budgets for a teacher of which only the config is there."""
    teacher = directory / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    content = load_recipe("quickstart").model_dump(mode="json")
    content["name"] = "steps"
    content["teacher"]["model"] = str(teacher)
    content["h1"] |= {"schedule": SCHEDULE, "steps": {}}
    content["h1"]["sft"]["step"] = SCHEDULE[2]
    content["search"]["budgets"] = BUDGETS
    content["release"]["names"] = {}
    path = directory / "steps.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def models_plans(recipe: Recipe) -> dict[str, AssetPlan]:
    """Return the evals of 200 models that share one checkpoint, with leaderboard and report."""
    teacher, traces, completions = teacher_assets(recipe)
    models = [EvaluatedModel(name=f"model{index}", checkpoint=teacher) for index in range(MODELS)]
    evals = eval_assets(recipe, teacher, models)
    results = result_assets(recipe, models, evals, (traces, completions))
    return {own.key: own for own in (teacher, traces, completions, *evals, *results)}


def tasks(number: int) -> list[dict[str, Any]]:
    """Return eval tasks that differ in a knob."""
    return [
        {"name": "arithmetic", "label": f"sum{index}", "knobs": {"steps": 1 + index}}
        for index in range(number)
    ]


def record(plans: Mapping[str, AssetPlan], home: Path) -> None:
    """Store an artifact and a materialization of every asset and partition, as if all had been built."""
    prepare_home(home)
    store, made = ArtifactStore(home), environment()
    versions: dict[tuple[str, str | None], str] = {}
    pointers: dict[str, int] = {}
    with open_instance(home) as instance:
        for plan in plans.values():
            for partition in plan.partition_keys:
                address = _record_artifact(store, plan, partition, versions, made)
                versions[plan.key, partition] = address
            events = [
                _event(plan, partition, versions, pointers, versions[plan.key, partition])
                for partition in plan.partition_keys
            ]
            _record_events(instance, events)
            pointers[plan.key] = (
                instance.fetch_materializations(asset_key(plan.key), limit=1).records[0].storage_id
            )


def _record_artifact(
    store: ArtifactStore,
    plan: AssetPlan,
    partition: str | None,
    versions: Mapping[tuple[str, str | None], str],
    made: Mapping[str, Any],
) -> str:
    inputs = {
        input_name(key, part): versions[key, part]
        for key, parts in plan.reads_of(partition).items()
        for part in parts
    }
    address = store.address(plan.key, plan.code_version, inputs, partition)
    provenance = {
        "partition": partition,
        "recipe": plan.recipe,
        "recipe_slice": plan.slice,
        "code_version": plan.code_version,
        "inputs": inputs,
        **made,
    }
    with store.create(plan.key, address, provenance) as draft:
        draft.tables["evals"] = pa.table({"value": [1.0]})
    return address


def _event(
    plan: AssetPlan,
    partition: str | None,
    versions: Mapping[tuple[str, str | None], str],
    pointers: Mapping[str, int],
    address: str,
) -> dg.AssetMaterialization:
    tags = {"dagster/code_version": plan.code_version, "dagster/data_version": address}
    for upstream in plan.upstream:
        version = versions.get((upstream.key, None), "of partitions")
        tags[f"dagster/input_data_version/{upstream.key}"] = version
        tags[f"dagster/input_event_pointer/{upstream.key}"] = str(pointers[upstream.key])
    if partition is None:
        tags["dagster/data_version_is_user_provided"] = "true"
    sample = [dg.TableRecord({"model": "h1", "task": "recall", "metric": "accuracy", "value": 0.5})] * 5
    metadata = {"address": address, "seconds": 1.0, "first_rows": dg.MetadataValue.table(sample)}
    return dg.AssetMaterialization(asset_key(plan.key), partition=partition, metadata=metadata, tags=tags)


def _record_events(instance: dg.DagsterInstance, events: Sequence[dg.AssetMaterialization]) -> None:
    *others, last = events
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:  # in one transaction: thousands of them would take minutes
        for event in others:
            entry = EventLogEntry(
                user_message="",
                level=logging.INFO,
                job_name=RUNLESS_JOB_NAME,
                run_id=RUNLESS_RUN_ID,
                error_info=None,
                timestamp=time.time(),
                dagster_event=DagsterEvent(
                    dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                    job_name=RUNLESS_JOB_NAME,
                    event_specific_data=StepMaterializationData(event),
                ),
            )
            connection.execute(storage.prepare_insert_event(entry))
    instance.report_runless_asset_event(last)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def command(*arguments: str) -> tuple[float, Any]:
    """Run `apriel` in a fresh process; return wall seconds and its JSON."""
    line = [sys.executable, "-m", "apriel_assets.cli", *arguments, "--json"]
    seconds, done = timed(lambda: subprocess.run(line, capture_output=True, text=True, check=True))
    return seconds, json.loads(done.stdout)


def measure_steps(directory: Path) -> dict[str, Any]:
    """Measure the recipe of many steps."""
    path, home = steps_recipe(directory), directory / "steps"
    recipe = load_recipe(str(path))
    plans = plan_assets(recipe)
    record(plans, home)
    shutil.copy(path, home / "recipe.yaml")
    location = [sys.executable, "-c", LOAD]
    loaded = subprocess.run(
        location, capture_output=True, text=True, check=True, env={**_environment(), "APRIEL_HOME": str(home)}
    )
    load_s, has_torch = loaded.stdout.split()
    given = ("--recipe", str(path), "--home", str(home))
    plan_s, nothing = command("plan", *given)
    edited_s, edited = command("plan", *given, "--set", "seed=1")
    noop_s, ran = command("run", *given)
    assert not nothing["rows"], nothing["rows"][:3]
    assert not ran["ran"]
    return {
        "assets_and_partitions": sum(len(plan.partition_keys) for plan in plans.values()),
        "location_load_s": float(load_s),
        "location_imports_torch": has_torch == "True",
        "plan_s": plan_s,
        "plan_after_edit_of_all_s": edited_s,
        "rows_after_edit_of_all": len(edited["rows"]),
        "noop_run_s": noop_s,
    }


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "APRIEL_RECIPE"}


def measure_models(directory: Path) -> dict[str, Any]:
    """Measure many models on many tasks: once the process runs, and with its start."""
    home = directory / "models"
    recipe = load_recipe("quickstart", [f"evals.tasks={json.dumps(tasks(TASKS))}"])
    plans = models_plans(recipe)
    recording_s, _ = timed(lambda: record(plans, home))
    result: dict[str, Any] = {
        "assets_and_partitions": sum(len(plan.partition_keys) for plan in plans.values()),
        "recording_s": recording_s,
    }
    edits = {
        "nothing": [f"evals.tasks={json.dumps(tasks(TASKS))}"],
        "further_task": [f"evals.tasks={json.dumps(tasks(TASKS + 1))}"],
        "all_evals_edited": [f"evals.tasks={json.dumps(tasks(TASKS))}", "evals.accuracy.num_problems=7"],
    }
    for name, overlays in edits.items():

        def plan(overlays: list[str] = overlays) -> int:
            plans = models_plans(load_recipe("quickstart", overlays))
            defs = dg.Definitions(
                assets=[to_dagster(own) for own in plans.values()],
                resources={"home": Home(path=str(home)), "execution": Execution(recipe.execution, {})},
            )
            with open_instance(home) as instance:
                return len(make_plan(plans, defs, instance, ArtifactStore(home)).rows)

        seconds, rows = timed(plan)
        result |= {f"plan_{name}_s": seconds, f"rows_{name}": rows}
    return result


def quickstart_overhead(home: Path) -> dict[str, float]:
    """Return how much longer a finished home's runs took than its builders."""
    builders = sum(
        json.loads(path.read_text())["figures"]["seconds"]
        for path in home.glob("artifacts/**/provenance.json")
    )
    with open_instance(home) as instance:
        records = instance.get_run_records()
    started = min(record.start_time for record in records if record.start_time)
    ended = max(record.end_time for record in records if record.end_time)
    in_runs = sum(
        record.end_time - record.start_time for record in records if record.end_time and record.start_time
    )
    return {
        "builders_s": builders,
        "dagster_runs_s": in_runs,
        "first_to_last_s": ended - started,
        "between_runs_share": (ended - started - in_runs) / (ended - started),
        "overhead_share": (ended - started - builders) / (ended - started),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart-home", type=Path, help="of one `apriel run` that started empty")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "planning.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = {"steps": measure_steps(Path(directory)), "models": measure_models(Path(directory))}
    if given.quickstart_home:
        report["quickstart"] = quickstart_overhead(given.quickstart_home)
    report |= environment()
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
