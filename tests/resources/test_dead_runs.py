"""Runs whose process is gone are recorded as failed; those that work, or are of others, are left alone."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from apriel_assets.planning.execute import Batch, run_batch
from resources import dead_runs
from resources.dead_runs import close_dead_runs, process_tags
from resources.home import open_instance, prepare_home

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


def launched(instance, pid=None, *, name="apriel_assets", **reached):
    """Record a run that a code server launched, and the process that it named."""
    tags = {GRPC_INFO_TAG: json.dumps(reached or {"host": "worker", "port": 4000})}
    run = create_run_for_test(instance, status=STARTED, remote_job_origin=_origin(name), tags=tags)
    if pid is not None:
        instance.report_engine_event("Started process", run, EngineEventData(metadata={"pid": str(pid)}))
    return run


def _origin(name):
    return RemoteJobOrigin(
        repository_origin=RemoteRepositoryOrigin(code_location_origin=server(name), repository_name="r"),
        job_name="j",
    )


def server(name="apriel_assets", **more):
    return GrpcServerCodeLocationOrigin(location_name=name, **(more or {"host": "worker", "port": 4000}))


def close(instance, home, *, later_s=0.0, by=None):
    return close_dead_runs(instance, home, time.time() + later_s, by or server())


@pytest.fixture
def dead_pid():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_run_of_apriel_run_lives_as_long_as_its_process(instance, tmp_path, dead_pid):
    tags = process_tags(tmp_path)
    alive = create_run_for_test(instance, status=STARTED, tags=tags)
    dead = create_run_for_test(instance, status=STARTED, tags={**tags, "apriel/pid": str(dead_pid)})
    assert close(instance, tmp_path) == [dead.run_id]
    assert status_of(instance, dead.run_id) == dg.DagsterRunStatus.FAILURE
    assert status_of(instance, alive.run_id) == STARTED


def test_apriel_run_says_whose_its_runs_are(tmp_path):
    prepare_home(tmp_path)

    @dg.asset
    def one():
        pass

    rows: Any = (SimpleNamespace(asset="one", partition=None),)
    with open_instance(tmp_path) as instance:
        run_batch(dg.Definitions(assets=[one]), instance, Batch(rows), tmp_path)
        (run,) = instance.get_runs()
    assert process_tags(tmp_path).items() <= run.tags.items()


@pytest.mark.parametrize(
    "tags", [{}, {"apriel/home": "/another/home"}, {"apriel/host": "another-machine"}], ids=str
)
def test_runs_without_an_origin_that_are_not_ours_are_left_alone(tags, instance, tmp_path, dead_pid):
    given = {**process_tags(tmp_path), "apriel/pid": str(dead_pid), **tags} if tags else {}
    create_run_for_test(instance, status=STARTED, tags=given)
    assert close(instance, tmp_path, later_s=1e6) == []


def test_a_launched_run_lives_as_long_as_its_process(instance, tmp_path, dead_pid):
    alive = launched(instance, os.getpid())
    dead = launched(instance, dead_pid)
    assert close(instance, tmp_path) == [dead.run_id]
    assert status_of(instance, alive.run_id) == STARTED


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another_team"},
        {"host": "another-worker", "port": 4000},
        {"host": "worker", "port": 4001},
    ],
    ids=str,
)
def test_runs_that_another_server_launched_are_left_alone(other, instance, tmp_path, dead_pid):
    launched(instance, dead_pid, **other)
    launched(instance, **other)
    assert close(instance, tmp_path, later_s=1e6) == []


def test_without_a_server_of_its_own_no_launched_run_is_touched(instance, tmp_path, dead_pid):
    launched(instance, dead_pid)
    assert close_dead_runs(instance, tmp_path, time.time(), None) == []


def test_a_socket_is_of_this_machine_if_the_records_are_files(instance, tmp_path, dead_pid, monkeypatch):
    by = server(host="localhost", socket="/tmp/new")
    earlier = launched(instance, dead_pid, host="localhost", socket="/tmp/old")
    assert close(instance, tmp_path, by=by) == [earlier.run_id]
    launched(instance, dead_pid, host="localhost", socket="/tmp/old")
    monkeypatch.setattr(dead_runs, "SqliteRunStorage", type("NoSuchStorage", (), {}))  # as with a database
    assert close(instance, tmp_path, by=by) == []


def test_another_process_with_the_same_number_is_not_it(instance, tmp_path, monkeypatch):
    without_ticks = {name: tag for name, tag in process_tags(tmp_path).items() if name != "apriel/ticks"}
    runs = [
        launched(instance, os.getpid()),
        create_run_for_test(instance, status=STARTED, tags=without_ticks),
    ]
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 60)
    assert set(close(instance, tmp_path)) == {run.run_id for run in runs}


def test_a_clock_that_is_set_anew_kills_nobody(instance, tmp_path, monkeypatch):
    """Forward, processes seem to have begun after the runs that they carry out."""
    launched(instance, os.getpid())
    create_run_for_test(instance, status=STARTED, tags=process_tags(tmp_path))
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    for jump_s in (3600, -3600):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, own=jump_s: create_time(self) + own)
        monkeypatch.setattr(psutil, "boot_time", lambda own=jump_s: boot_time() + own)
        assert close(instance, tmp_path) == []


def test_a_process_that_began_at_another_tick_is_another(instance, tmp_path):
    tags = process_tags(tmp_path) | {"apriel/ticks": "1"}
    run = create_run_for_test(instance, status=STARTED, tags=tags)
    assert close(instance, tmp_path) == [run.run_id]


def test_a_run_that_has_just_been_launched_has_time_to_start(instance, tmp_path):
    run = launched(instance)
    assert close(instance, tmp_path) == []
    assert close(instance, tmp_path, later_s=301) == [run.run_id]
