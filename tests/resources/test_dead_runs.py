"""Runs whose process is gone are recorded as failed; those that work are left alone."""

import os
import subprocess
import sys
import time

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from resources.dead_runs import close_dead_runs
from resources.home import open_instance, prepare_home, run_lock

STARTED = dg.DagsterRunStatus.STARTED


@pytest.fixture
def instance(tmp_path):
    prepare_home(tmp_path)
    with open_instance(tmp_path) as opened:
        yield opened


def status_of(instance, run_id):
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def launched(instance, pid):
    """Record a run that a code server launched, and the process that it named."""
    run = create_run_for_test(instance, status=STARTED, remote_job_origin=_origin())
    instance.report_engine_event("Started process", run, EngineEventData(metadata={"pid": str(pid)}))
    return run


def _origin():
    location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="apriel_assets")
    return RemoteJobOrigin(
        repository_origin=RemoteRepositoryOrigin(code_location_origin=location, repository_name="r"),
        job_name="j",
    )


def test_a_run_of_apriel_run_lives_while_the_home_is_locked(instance, tmp_path):
    run = create_run_for_test(instance, status=STARTED)
    with run_lock(tmp_path):
        assert close_dead_runs(instance, tmp_path, time.time()) == []
    assert close_dead_runs(instance, tmp_path, time.time()) == [run.run_id]
    assert status_of(instance, run.run_id) == dg.DagsterRunStatus.FAILURE


def test_a_launched_run_lives_as_long_as_its_process(instance, tmp_path):
    alive = launched(instance, os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = launched(instance, ended.pid)
    assert close_dead_runs(instance, tmp_path, time.time()) == [dead.run_id]
    assert status_of(instance, alive.run_id) == STARTED


def test_another_process_with_the_same_number_is_not_it(instance, tmp_path, monkeypatch):
    run = launched(instance, os.getpid())
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 60)
    assert close_dead_runs(instance, tmp_path, time.time()) == [run.run_id]


def test_a_run_that_has_just_been_launched_has_time_to_start(instance, tmp_path):
    run = create_run_for_test(instance, status=STARTED, remote_job_origin=_origin())
    assert close_dead_runs(instance, tmp_path, time.time()) == []
    assert close_dead_runs(instance, tmp_path, time.time() + 301) == [run.run_id]
