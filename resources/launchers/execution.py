"""Runs each step as the recipe's `execution` section says; the one resource behind which all launchers are."""

import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import PipesFileContextInjector, PipesFileMessageReader, PipesSession, open_pipes_session
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import capture_interrupts, pop_captured_interrupt

from apriel_assets.errors import UserError
from apriel_assets.progress import Progress
from resources.artifact_store import Draft
from resources.launchers.config import ACCELERATE, INLINE, RAY, ExecutionConfig, StepExecution
from resources.launchers.failures import StepError, TransientStepError, failure
from resources.launchers.order import Outcome, StepOrder, forget_outcomes, placed, read_outcomes
from resources.launchers.process_group import ProcessGroup
from resources.leases import Lease, has_gpus, leased
from resources.provenance import environment

STEP_MODULE = "apriel_assets.step"
_POLL_S = 0.25
_RAY_NOTE = "ray.json"


@dataclass(frozen=True)
class Execution:
    """How the steps of one recipe are run."""

    config: ExecutionConfig
    recipe: Mapping[str, Any]  # resolved, as plain JSON: what a step's own process reads

    def run(
        self,
        order: StepOrder,
        how: StepExecution,
        draft: Draft,
        *,
        inline: Callable[[], None],
        context: dg.AssetExecutionContext,
        progress: Progress,
    ) -> dict[str, Any]:
        """Fill the draft; return what its provenance says of where it was made.

        Args:
            order: what is built.
            how: the step's settings.
            draft: gets the figures, and from an inline step the tables; another process writes those itself.
            inline: builds in this process.
            context: of the running Dagster step; gets the live logs.
            progress: told how far the step is, wherever it runs.

        Raises:
            UserError: the step's own, too few GPUs, or over its time.
            StepError: its process failed and another attempt would not help, or was the last one.
        """
        if how.launcher == INLINE:
            inline()
            draft.figures.setdefault("gpu_seconds", _unleased_gpu_seconds(torch_sees_gpu()))
            return {"launcher": INLINE, "devices": [], "processes": 1, **environment()}

        outcome, seconds, place = self._elsewhere(order, how, context, progress)
        draft.data_version = outcome.data_version
        # Not the wait for devices; but failed attempts held them too.
        draft.figures |= {
            "seconds": seconds,
            **outcome.figures,
            "gpu_seconds": seconds * len(place["devices"]) if how.gpus else _unleased_gpu_seconds(has_gpus()),
        }
        return {"launcher": how.launcher, **place, **outcome.environment}

    def _elsewhere(
        self, order: StepOrder, how: StepExecution, context: dg.AssetExecutionContext, progress: Progress
    ) -> tuple[Outcome, float, dict[str, Any]]:
        """Build in other processes; return how it ended, the seconds it had its devices, and where that was."""

        def waiting(holders: str) -> None:
            context.log.info("%s: waits for %d GPUs; %s", order.step, how.gpus, holders)

        # Ray, or what starts processes on several machines, gives out GPUs itself.
        own_gpus = 0 if how.launcher == RAY or how.machines > 1 else how.gpus
        with leased(own_gpus, order.step, waiting) as lease, placed(order, self.recipe) as file:
            began = time.time()
            outcome = _attempts(order, how, file, lease, context, progress)
            place: dict[str, Any] = {"devices": list(lease.devices)}
            if how.machines > 1:
                place = {"devices": ["unnamed"] * how.gpus, "machines": how.machines}
            if how.launcher == RAY:
                place |= _ray_note(order)
                began = place.pop("began")
            return outcome, time.time() - began, place


def torch_sees_gpu() -> bool:
    """Return whether torch may work on a GPU in this process."""
    import torch

    return torch.cuda.is_available()


def _unleased_gpu_seconds(has_any: bool) -> float | None:
    # Nobody knows for how long a step without a lease had which of the GPUs that it sees.
    return None if has_any else 0.0


def _attempts(
    order: StepOrder,
    how: StepExecution,
    file: Path,
    lease: Lease,
    context: dg.AssetExecutionContext,
    progress: Progress,
) -> Outcome:
    for attempt in range(1, how.retries + 2):
        try:
            return _attempt(order, how, file, lease, context, progress)
        except TransientStepError as error:
            if attempt > how.retries:
                raise
            # What training saved is in the work directory: the next attempt goes on from there.
            context.log.warning("%s; retry %d of %d", error, attempt, how.retries)
    raise AssertionError("unreachable")


def _attempt(
    order: StepOrder,
    how: StepExecution,
    file: Path,
    lease: Lease,
    context: dg.AssetExecutionContext,
    progress: Progress,
) -> Outcome:
    forget_outcomes(order)
    with _pipes_session(context, order.directory) as session:
        variables = {**_environment(how, lease), **session.get_bootstrap_env_vars()}
        with ProcessGroup(_command(how, file, order), variables, lease.handles) as group:
            context.log.info("%s: %s, process %d", order.step, how.launcher, group.pid)
            code = _wait(group, session, order, how, progress)
    outcomes = read_outcomes(order)
    if code and how.launcher == RAY and (refused := _ray_note(order).get("refused")):
        raise UserError(f"{order.step}: {refused}")
    if code:
        raise failure(order.step, code, outcomes)
    if not outcomes or outcomes[0].state != "done":
        raise StepError(f"{order.step} ended well but built nothing")
    return outcomes[0]


@contextmanager
def _pipes_session(context: dg.AssetExecutionContext, directory: Path) -> Iterator[PipesSession]:
    with ExitStack() as stack:
        with warnings.catch_warnings():
            # They are about Dagster's own calls, and Dagster is pinned.
            warnings.simplefilter("ignore")
            # In the home, which another node sees too.
            session = open_pipes_session(
                context,
                PipesFileContextInjector(str(directory / "pipes-context.json")),
                PipesFileMessageReader(str(directory / "pipes-messages.jsonl"), cleanup_file=True),
            )
            opened = stack.enter_context(session)
        yield opened


def _environment(how: StepExecution, lease: Lease) -> dict[str, str]:
    # Without being told, processes of accelerate that find no GPU do not find each other either: each trains alone.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if how.launcher == ACCELERATE and not has_gpus() else {}
    return {**os.environ, **lease.environment, **on_cpu}


def _command(how: StepExecution, file: Path, order: StepOrder) -> list[str]:
    command = (
        _accelerated(how, file) if how.is_distributed else [sys.executable, "-m", STEP_MODULE, str(file)]
    )
    if how.launcher != RAY:
        return command
    ray = [sys.executable, "-m", "resources.launchers.ray_task"]
    return [*ray, str(how.gpus), str(order.directory / _RAY_NOTE), *command]


def _accelerated(how: StepExecution, file: Path) -> list[str]:
    processes = ["--num_processes", str(how.processes), "--num_machines", str(how.machines)]
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", *_meeting(how.machines)]
    several = ["--multi_gpu"] if how.processes > 1 else []
    launch = [*how.machine_launcher, sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, *processes, *several, *options, "--module", STEP_MODULE, str(file)]


def _meeting(machines: int) -> list[str]:
    """Return where processes find each other; several machines do at this one, which is one of them."""
    if machines == 1:
        return ["--main_process_port", "0"]
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    # The rendezvous gives machines their numbers, whatever is said here; 0 would refuse a port that is in use.
    place = ["--main_process_ip", socket.gethostname(), "--main_process_port", str(port)]
    return [*place, "--machine_rank", "1", "--rdzv_backend", "c10d"]


def _ray_note(order: StepOrder) -> dict[str, Any]:
    """Return what the task said of itself: node and devices, or why there is none."""
    file = order.directory / _RAY_NOTE
    return json.loads(file.read_text()) if file.exists() else {}


def _wait(
    group: ProcessGroup, session: PipesSession, order: StepOrder, how: StepExecution, progress: Progress
) -> int:
    deadline = time.monotonic() + how.timeout_s if how.timeout_s else None
    told = 0
    # An interrupt waits for our next look: it would hit the records' database in the middle of a write otherwise.
    with capture_interrupts():
        while True:
            code = group.wait(_POLL_S)
            messages = session.get_custom_messages()
            for message in messages[told:]:
                own = message["progress"]
                progress(own["done"], own["total"], **own["figures"])
            told = len(messages)
            if pop_captured_interrupt():
                raise DagsterExecutionInterruptedError
            if code is not None:
                return code
            if deadline and time.monotonic() > deadline:
                raise UserError(
                    f"{order.step} took longer than execution.timeout_s={how.timeout_s:g} and was ended; what it saved "
                    "is kept: raise timeout_s and run again to go on from there"
                )
