"""Ask for a run once: not again while one waits or works, a few times more after a failure, never after bad input.

What was asked for is written on the run itself (the tag `apriel/wanted`), so nothing has to be remembered anywhere
else: a sensor that starts anew, or on another machine, comes to the same answer.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from apriel_assets.assets.records import asset_key
from resources.artifact_store import digest

WANTED_TAG = "apriel/wanted"
_SENSOR_TAG, _SCHEDULE_TAG = "dagster/sensor_name", "dagster/schedule_name"
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


@dataclass(frozen=True)
class _Refusal:
    """Why what a run was asked for should not be tried again."""

    reason: str
    is_final: bool  # False: it may have been for the sake of something else that the run was asked for


class PastRequests:
    """The runs that one sensor asked for, newest first, and what follows from how they ended."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        sensor: str,
        retries: Retries,
        now: float,
        *,
        schedule: str | None = None,
    ) -> None:
        """Read the runs.

        Args:
            instance: Dagster's records.
            sensor: by its name.
            retries: how often to try again.
            now: seconds since 1970.
            schedule: whose runs count as well.
        """
        self._instance, self._retries, self._now = instance, retries, now
        asked_by = {_SENSOR_TAG: sensor, _SCHEDULE_TAG: schedule}
        records = [
            record
            for tag, name in asked_by.items()
            if name
            for record in instance.get_run_records(dg.RunsFilter(tags={tag: name}), limit=_REMEMBERED_RUNS)
        ]
        records.sort(key=lambda record: record.storage_id, reverse=True)
        self._runs = [(record, _wanted_of(record)) for record in records]

    def is_done(self, wanted: Wanted) -> bool:
        """Return whether a run that was asked for exactly this has ended well."""
        done = dg.DagsterRunStatus.SUCCESS
        return any(
            record.dagster_run.status == done and causes.get(wanted.place) == wanted.cause
            for record, causes in self._runs
        )

    def was_asked_for(self, wanted: Wanted) -> bool:
        """Return whether there is a run that was asked for exactly this."""
        return any(causes.get(wanted.place) == wanted.cause for _, causes in self._runs)

    def next_attempt(self, wanted: Wanted) -> int | str:
        """Return the number of the attempt to ask for now, from 0, or why none is asked for."""
        asked = [
            (record, causes) for record, causes in self._runs if causes.get(wanted.place) == wanted.cause
        ]
        runs = [record for record, _ in asked]
        if running := [own for own in runs if not own.dagster_run.is_finished]:
            return f"{wanted.place}: run {_short(running[0])} is under way"
        refusals = [own for record, causes in asked if (own := self._refusal(record, wanted, causes))]
        if final := [own for own in refusals if own.is_final]:
            return f"{wanted.place}: {final[0].reason}"
        if refusals and all(len(causes) > 1 for _, causes in asked):
            return len(runs)  # it may have been for another one's sake: once more at once, alone
        if self._num_in_vain(wanted) >= _MOST_SUCCESSES:
            return (
                f"{wanted.place}: stale again after {_MOST_SUCCESSES} good runs in an hour; see `apriel plan`"
            )
        return self._retry(wanted, runs)

    def _refusal(self, record: dg.RunRecord, wanted: Wanted, causes: Mapping[str, str]) -> "_Refusal | None":
        if record.dagster_run.status == dg.DagsterRunStatus.CANCELED:
            reason = f"run {_short(record)} was cancelled; start it by hand, or change the recipe"
            return _Refusal(reason, is_final=len(causes) == 1)
        if message := user_error(self._instance, record.dagster_run.run_id, wanted.asset):
            # A run of several partitions is one step of each asset: which partition was at fault, it does not say.
            partitions = [place for place in causes if place.partition("@")[0] == wanted.asset]
            return _Refusal(message, is_final=len(partitions) == 1)
        return None

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


def due_one_by_one(
    past: PastRequests, wanted: Iterable[Wanted], tags: Mapping[str, Mapping[str, str]] | None = None
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return a request for each of what is due, and why the rest is not; nothing of what is done.

    Args:
        past: what was asked for before.
        wanted: one partition each.
        tags: more of them for a run, by its partition.
    """
    found, reasons = [], []
    for own in wanted:
        if past.is_done(own):
            continue
        attempt = past.next_attempt(own)
        if isinstance(attempt, str):
            reasons.append(attempt)
            continue
        added = (tags or {}).get(own.partition or "", {})
        found.append(
            dg.RunRequest(
                run_key=run_key([own], attempt),
                asset_selection=[asset_key(own.asset)],
                partition_key=own.partition,
                tags={**wanted_tags([own]), **added},
            )
        )
    return found, reasons


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
