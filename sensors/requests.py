"""Ask for a run once: not again while one waits or works, a few times more after a failure, never after bad input.

What was asked for is written on the run itself (the tag `apriel/wanted`), so nothing has to be remembered anywhere
else: a sensor that starts anew, or on another machine, comes to the same answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from apriel_assets.assets.records import asset_key
from resources.artifact_store import digest

WANTED_TAG = "apriel/wanted"
_SENSOR_TAG = "dagster/sensor_name"
_REMEMBERED_RUNS = 500
_LONGEST_WAIT_S = 6 * 3600.0
# A step may be asked for again for the same result, if its files were damaged meanwhile; not for ever.
_MOST_SUCCESSES = 3
_SUCCESSES_WITHIN_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One asset (partition) that should be materialized."""

    asset: str
    partition: str | None = None
    goal: str  # hash of what it will be made from
    state: str  # what it is now

    @property
    def place(self) -> str:
        return f"{self.asset}@{self.partition}" if self.partition else self.asset

    @property
    def cause(self) -> str:
        """Changes when another result is wanted, or when the one that is there was made anew."""
        return f"{self.goal} {self.state}"


@dataclass(frozen=True)
class Retries:
    """How often a failed run is asked for again, and when."""

    limit: int
    wait_s: float  # before the first retry; doubles with each further one

    def wait_after(self, num_failures: int) -> float:
        """Return how long after the last failure the next attempt is due, seconds."""
        return min(self.wait_s * 2 ** (num_failures - 1), _LONGEST_WAIT_S)


def wanted_tags(wanted: Sequence[Wanted]) -> dict[str, str]:
    """Return the tag that says what a run was asked for."""
    return {WANTED_TAG: json.dumps({own.place: own.cause for own in wanted}, sort_keys=True)}


def run_key(wanted: Sequence[Wanted], attempt: int) -> str:
    """Return the key that lets Dagster drop a second request for the same."""
    return digest([sorted((own.place, own.cause) for own in wanted), attempt])


class PastRequests:
    """The runs that one sensor asked for, newest first, and what follows from how they ended."""

    def __init__(self, instance: dg.DagsterInstance, sensor: str, retries: Retries, now: float) -> None:
        """Read the runs.

        Args:
            instance: Dagster's records.
            sensor: by its name.
            retries: how often to try again.
            now: seconds since 1970.
        """
        self._instance, self._retries, self._now = instance, retries, now
        records = instance.get_run_records(dg.RunsFilter(tags={_SENSOR_TAG: sensor}), limit=_REMEMBERED_RUNS)
        self._runs = [(record, _wanted_of(record)) for record in records]

    def is_done(self, wanted: Wanted) -> bool:
        """Return whether a run that was asked for exactly this has ended well."""
        done = dg.DagsterRunStatus.SUCCESS
        return any(
            record.dagster_run.status == done and causes.get(wanted.place) == wanted.cause
            for record, causes in self._runs
        )

    def next_attempt(self, wanted: Wanted) -> int | str:
        """Return the number of the attempt to ask for now, from 0, or why none is asked for."""
        runs = [record for record, causes in self._runs if causes.get(wanted.place) == wanted.cause]
        if running := [own for own in runs if not own.dagster_run.is_finished]:
            return f"{wanted.place}: run {_short(running[0])} is under way"
        if cancelled := [own for own in runs if own.dagster_run.status == dg.DagsterRunStatus.CANCELED]:
            return f"{wanted.place}: run {_short(cancelled[0])} was cancelled; start it by hand, or change the recipe"
        for record in runs:
            if message := user_error(self._instance, record.dagster_run.run_id, wanted.asset):
                return f"{wanted.place}: {message}"
        if self._num_in_vain(wanted) >= _MOST_SUCCESSES:
            return (
                f"{wanted.place}: stale again after {_MOST_SUCCESSES} good runs in an hour; see `apriel plan`"
            )
        return self._retry(wanted, runs)

    def _retry(self, wanted: Wanted, runs: Sequence[dg.RunRecord]) -> int | str:
        if not runs:
            return 0
        if len(runs) > self._retries.limit:
            return f"{wanted.place}: given up after {len(runs)} failed runs, the last {_short(runs[0])}"
        due = (runs[0].end_time or self._now) + self._retries.wait_after(len(runs))
        if self._now < due:
            return f"{wanted.place}: run {_short(runs[0])} failed; tried again in {due - self._now:.0f} s"
        return len(runs)

    def _num_in_vain(self, wanted: Wanted) -> int:
        """Return how many good runs for the same result came last, with none for another result in between."""
        count = 0
        for record, causes in self._runs:
            if (cause := causes.get(wanted.place)) is None:
                continue
            old = (record.end_time or self._now) < self._now - _SUCCESSES_WITHIN_S
            if old or not cause.startswith(wanted.goal + " "):
                break
            count += record.dagster_run.status == dg.DagsterRunStatus.SUCCESS
        return count


def user_error(instance: dg.DagsterInstance, run_id: str, asset: str) -> str | None:
    """Return the one line that an asset's step ended with if the user's input was at fault, else None."""
    step = asset_key(asset).to_python_identifier()
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        error = event.step_failure_data.error if event and event.step_key == step else None
        while error is not None:
            if error.cls_name == "UserError":
                return error.message.strip().removeprefix("apriel_assets.errors.UserError: ")
            error = error.cause
    return None


def assets_in_flight(instance: dg.DagsterInstance) -> dict[str | None, str]:
    """Return the run that each asset waits for or is worked on by; under None one that may touch any asset."""
    found: dict[str | None, str] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        keys = [key.to_user_string() for key in run.asset_selection] if run.asset_selection else [None]
        found |= dict.fromkeys(keys, run.run_id[:8])
    return found


def _wanted_of(record: dg.RunRecord) -> Mapping[str, str]:
    try:
        return json.loads(record.dagster_run.tags.get(WANTED_TAG, "{}"))
    except ValueError:
        return {}


def _short(record: dg.RunRecord) -> str:
    return record.dagster_run.run_id[:8]
