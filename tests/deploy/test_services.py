"""The services of the compose file, for real: records in PostgreSQL, runs from the UI, termination in mid-training."""

import json
import subprocess

import psycopg2
import pytest
from deployed_services import BIN, wait_for

pytestmark = pytest.mark.services


def apriel(place: dict, *arguments: str) -> str:
    command = [BIN / "apriel", *arguments, "--recipe", place["recipe"], "--home", place["home"], "--json"]
    return subprocess.run(
        command, env=place["environment"], check=True, capture_output=True, text=True
    ).stdout


def counts(environment: dict[str, str], sql: str) -> int:
    with psycopg2.connect(
        host=environment["POSTGRES_HOST"], port=environment["POSTGRES_PORT"], user="dagster", dbname="dagster"
    ) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        (found,) = cursor.fetchone() or (0,)
        return found


def test_records_are_made_again_in_postgres_from_what_is_stored(postgres_home):
    """A new database knows nothing; the store does: everything is recorded, nothing is built."""
    home, environment = postgres_home["home"], postgres_home["environment"]
    before = {path: path.stat().st_mtime for path in home.glob("artifacts/**/provenance.json")}
    ran = json.loads(apriel(postgres_home, "run", "--select", "h1/h2,h1/probes/h3,completions"))["ran"]
    assert ["h1/h2", None] in ran
    assert {path: path.stat().st_mtime for path in home.glob("artifacts/**/provenance.json")} == before
    assert counts(environment, "select count(*) from runs where status = 'SUCCESS'") > 0
    materialized = "select count(*) from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'"
    assert counts(environment, materialized) >= len(ran)
    assert not list((home / "dagster").rglob("*.db"))  # nothing went to SQLite
    assert json.loads(apriel(postgres_home, "run", "--select", "h1/h2,h1/probes/h3,completions"))["ran"] == []


def test_materialize_from_the_ui(postgres_home, deployed):
    run = deployed.launch("layer_scores")
    wait_for(lambda: deployed.status(run) in ("SUCCESS", "FAILURE"), 120, "the run ends")
    assert deployed.status(run) == "SUCCESS"


def test_terminate_in_mid_training_leaves_no_process_and_the_next_run_resumes(deployed):
    def saved() -> list[str]:
        return sorted(path.name for path in deployed.home.glob("work/h1/h3/*/step-*"))

    run = deployed.launch("h1/h3")
    wait_for(lambda: len(deployed.step_processes()) > 1 and saved(), 180, "h1/h3 trains")
    processes = deployed.step_processes()
    assert deployed.terminate(run) == "TerminateRunSuccess"
    wait_for(
        lambda: not any(process.is_running() for process in processes), 15, "every process of the step ends"
    )
    assert not deployed.step_processes()
    wait_for(lambda: deployed.status(run) == "CANCELED", 30, "the run is cancelled")
    (last,) = saved()
    again, seen = deployed.launch("h1/h3"), set()

    def goes_on() -> bool:
        seen.update(saved())
        return max(seen) > last

    wait_for(goes_on, 180, "training goes on")
    assert min(seen) == last  # it would have saved its fifth step first, had it started over
    assert deployed.terminate(again) == "TerminateRunSuccess"
    wait_for(lambda: deployed.status(again) == "CANCELED", 30, "the second run is cancelled")
