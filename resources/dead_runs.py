"""Runs that Dagster takes for working although their process is gone: after a kill, nobody wrote that they ended.

Such a run would keep its slot in the queue and its assets for ever, so it is recorded as failed. Several homes, teams
and machines may share one Dagster: only what can be told to be of this machine is looked at.
"""

import json
import math
import os
import socket
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.remote_origin import CodeLocationOrigin
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.tags import GRPC_INFO_TAG

_WORKING = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_HOME_TAG, _HOST_TAG, _PID_TAG, _TICKS_TAG = "apriel/home", "apriel/host", "apriel/pid", "apriel/ticks"
_CLOCK_SLACK_S = 2.0
_BOOT_UNIX_S = psutil.boot_time()  # by the clock as it was when this process began
_START_LIMIT_S = 300.0  # a launched run has a process by then


def process_tags(home: Path) -> dict[str, str]:
    """Return the tags of runs that this process carries out itself: by these they are known if it is killed."""
    return {
        _HOME_TAG: str(home.resolve()),
        _HOST_TAG: socket.gethostname(),
        _PID_TAG: str(os.getpid()),
        **({_TICKS_TAG: ticks} if (ticks := _start_ticks(os.getpid())) else {}),
    }


def close_dead_runs(
    instance: dg.DagsterInstance, home: Path, now: float, server: CodeLocationOrigin | None
) -> list[str]:
    """Record runs without a process as failed; return their ids.

    Only runs of `apriel run` for this home on this host, and those that this code server has launched, can be told.

    Args:
        instance: Dagster's records, perhaps with runs of others.
        home: what `apriel run` works on.
        now: seconds since 1970.
        server: the code server that this is, as Dagster reaches it; None: not known.
    """
    records = instance.get_run_records(dg.RunsFilter(statuses=list(_WORKING)))
    closed = []
    for record in records:
        if not _is_dead(instance, record, home, now, server):
            continue
        # Read again: it may have ended well since.
        run = instance.get_run_by_id(record.dagster_run.run_id)
        if run is not None and run.status in _WORKING:
            instance.report_run_failed(run, "its process is gone: it was killed, or the machine went down")
            closed.append(run.run_id)
    return closed


def _is_dead(
    instance: dg.DagsterInstance,
    record: dg.RunRecord,
    home: Path,
    now: float,
    server: CodeLocationOrigin | None,
) -> bool:
    run = record.dagster_run
    if run.remote_job_origin is not None:
        return _launched_here(instance, run, server) and _process_gone(instance, record, now)
    own = process_tags(home)
    if any(run.tags.get(tag) != own[tag] for tag in (_HOME_TAG, _HOST_TAG)):
        return False
    pid, created = int(run.tags[_PID_TAG]), record.create_timestamp.timestamp()
    if _TICKS_TAG in run.tags and (ticks := _start_ticks(pid)) is not None:
        return ticks != run.tags[_TICKS_TAG] or not _is_alive(pid)
    return not _is_alive(pid, started_before=created + _CLOCK_SLACK_S)


def _launched_here(
    instance: dg.DagsterInstance, run: dg.DagsterRun, server: CodeLocationOrigin | None
) -> bool:
    """Return whether a run was handed to this code server, so that its process is one of this machine."""
    assert run.remote_job_origin is not None
    location = run.remote_job_origin.repository_origin.code_location_origin
    reached = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if type(instance.run_launcher).__name__ != "DefaultRunLauncher" or server is None or not reached:
        return False
    if location.location_name != server.location_name:
        return False
    if "port" in reached:
        return all(reached.get(key) == getattr(server, key, None) for key in ("host", "port"))
    # A socket is of one machine, and has another name after each start; records in files are of one machine, too.
    own = getattr(server, "socket", None) == reached.get("socket")
    return own or isinstance(instance.run_storage, SqliteRunStorage)


def _process_gone(instance: dg.DagsterInstance, record: dg.RunRecord, now: float) -> bool:
    """Return whether the process that a launched run named in its log is no longer there."""
    for entry in instance.all_logs(record.dagster_run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        metadata = event.engine_event_data.metadata if event else {}
        if (pid := metadata.get("pid")) is not None:
            return not _is_alive(int(str(pid.value)), started_before=entry.timestamp + _CLOCK_SLACK_S)
    return now - (record.start_time or record.create_timestamp.timestamp()) > _START_LIMIT_S


def _is_alive(pid: int, *, started_before: float = math.inf) -> bool:
    try:
        process = psutil.Process(pid)
        # The kernel tells starts by the present clock; if that was set anew, they seem to have been at another time.
        began = process.create_time()
        began = min(began, began - (psutil.boot_time() - _BOOT_UNIX_S))
        # A process that began later has merely got the same number.
        return process.status() != psutil.STATUS_ZOMBIE and began <= started_before
    except psutil.NoSuchProcess:
        return False


def _start_ticks(pid: int) -> str | None:
    """Return when a process began, in ticks since boot, which no clock moves; None: the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]  # its name, before that, may have spaces
