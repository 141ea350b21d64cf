"""Runs that Dagster takes for working although their process is gone: after a kill, nobody wrote that they ended.

Such a run would keep its slot in the queue and its assets for ever, so it is recorded as failed.
"""

from pathlib import Path

import dagster as dg
import psutil

from resources.home import run_lock_holder

_WORKING = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_CLOCK_SLACK_S = 2.0
_START_LIMIT_S = 300.0  # a launched run has a process by then


def close_dead_runs(instance: dg.DagsterInstance, home: Path, now: float) -> list[str]:
    """Record runs without a process as failed; return their ids.

    Only runs of `apriel run` on this home, and those that this machine's code server has launched, can be told.

    Args:
        instance: Dagster's records.
        home: whose lock `apriel run` holds while it works.
        now: seconds since 1970.
    """
    records = instance.get_run_records(dg.RunsFilter(statuses=list(_WORKING)))
    if not records:
        return []
    holder = run_lock_holder(home)
    local = type(instance.run_launcher).__name__ == "DefaultRunLauncher"
    closed = []
    for record in records:
        launched = record.dagster_run.remote_job_origin is not None
        dead = _process_gone(instance, record, now) if launched and local else not launched and not holder
        # Read again: it may have ended well since.
        run = instance.get_run_by_id(record.dagster_run.run_id)
        if dead and run is not None and run.status in _WORKING:
            instance.report_run_failed(run, "its process is gone: it was killed, or the machine went down")
            closed.append(run.run_id)
    return closed


def _process_gone(instance: dg.DagsterInstance, record: dg.RunRecord, now: float) -> bool:
    """Return whether the process that a launched run named in its log is no longer there."""
    for entry in instance.all_logs(record.dagster_run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        metadata = event.engine_event_data.metadata if event else {}
        if (pid := metadata.get("pid")) is not None:
            return not _is_alive(int(str(pid.value)), started_before=entry.timestamp + _CLOCK_SLACK_S)
    return now - (record.start_time or record.create_timestamp.timestamp()) > _START_LIMIT_S


def _is_alive(pid: int, *, started_before: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A process that began later has merely got the same number.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started_before
    except psutil.NoSuchProcess:
        return False
