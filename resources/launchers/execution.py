"""Runs each step as the recipe's `execution` section says; the one resource behind which all launchers are."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import PipesSession, PipesTempFileContextInjector, PipesTempFileMessageReader, open_pipes_session
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import capture_interrupts, pop_captured_interrupt

from apriel_assets.errors import UserError
from apriel_assets.progress import Progress
from resources.artifact_store import Draft
from resources.launchers.config import ACCELERATE, INLINE, ExecutionConfig, StepExecution
from resources.launchers.failures import StepError, TransientStepError, failure
from resources.launchers.order import Outcome, StepOrder, forget_outcomes, placed, read_outcomes
from resources.launchers.process_group import ProcessGroup
from resources.leases import Lease, has_gpus, leased
from resources.provenance import environment

STEP_MODULE = "apriel_assets.step"
_POLL_S = 0.25


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

        def waiting(holders: str) -> None:
            context.log.info("%s: waits for %d GPUs; %s", order.step, how.gpus, holders)

        with leased(how.gpus, order.step, waiting) as lease, placed(order, self.recipe) as file:
            started = time.monotonic()
            outcome = _attempts(order, how, file, lease, context, progress)
            seconds = time.monotonic() - started
        draft.data_version = outcome.data_version
        # Not the wait for devices; but failed attempts held them too.
        draft.figures |= {
            "seconds": seconds,
            **outcome.figures,
            "gpu_seconds": seconds * len(lease.devices) if how.gpus else _unleased_gpu_seconds(has_gpus()),
        }
        return {"launcher": how.launcher, "devices": list(lease.devices), **outcome.environment}


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
    with _pipes_session(context) as session:
        variables = {**_environment(how, lease), **session.get_bootstrap_env_vars()}
        with ProcessGroup(_command(how, file), variables, lease.handles) as group:
            context.log.info("%s: %s, process %d", order.step, how.launcher, group.pid)
            code = _wait(group, session, order, how, progress)
    outcomes = read_outcomes(order)
    if code:
        raise failure(order.step, code, outcomes)
    if not outcomes or outcomes[0].state != "done":
        raise StepError(f"{order.step} ended well but built nothing")
    return outcomes[0]


@contextmanager
def _pipes_session(context: dg.AssetExecutionContext) -> Iterator[PipesSession]:
    with ExitStack() as stack:
        with warnings.catch_warnings():
            # They are about Dagster's own calls, and Dagster is pinned.
            warnings.simplefilter("ignore")
            session = open_pipes_session(
                context, PipesTempFileContextInjector(), PipesTempFileMessageReader()
            )
            opened = stack.enter_context(session)
        yield opened


def _environment(how: StepExecution, lease: Lease) -> dict[str, str]:
    # Without being told, processes of accelerate that find no GPU do not find each other either: each trains alone.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if how.launcher == ACCELERATE and not has_gpus() else {}
    return {**os.environ, **lease.environment, **on_cpu}


def _command(how: StepExecution, file: Path) -> list[str]:
    if how.launcher != ACCELERATE:
        return [sys.executable, "-m", STEP_MODULE, str(file)]
    processes = ["--num_processes", str(how.processes), "--num_machines", "1"]
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    several = ["--multi_gpu"] if how.processes > 1 else []
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, *processes, *several, *options, "--module", STEP_MODULE, str(file)]


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
