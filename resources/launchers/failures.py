"""Which failures of a step another attempt may mend, and what to say of the others."""

from collections.abc import Sequence

from apriel_assets.errors import UserError
from resources.launchers.order import Outcome

# Of drivers, links and peers. Not here: device-side asserts and out-of-memory, which come again.
_TRANSIENT_SIGNS = (
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc error",
    "cuda error: unknown error",
    "nccl error",
    "ncclremoteerror",
    "ncclsystemerror",
    "connection closed by peer",
    "connection reset by peer",
    "socket timeout",
)


class StepError(RuntimeError):
    """A step failed in its own process; the message ends with that process's traceback."""


class TransientStepError(StepError):
    """A step was killed or its device failed: the same step may succeed when it is run again."""


def is_transient(error: BaseException) -> bool:
    """Tell whether an error is a device's or a link's rather than the program's."""
    text = str(error).lower()
    return any(sign in text for sign in _TRANSIENT_SIGNS)


def failure(step: str, code: int, outcomes: Sequence[Outcome]) -> Exception:
    """Return what a step's processes failed of.

    Args:
        step: name for the message.
        code: exit code of the command, 128 + n after signal n.
        outcomes: of its processes. Where one fails, the others are ended or lose their peer, so the first error
            that is none of these is the cause.

    Returns:
        UserError, TransientStepError, or StepError for everything else.
    """
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        if outcome.user_error:
            return UserError(outcome.error)
    for outcome in failed:
        if not outcome.transient:
            return StepError(f"{step} failed in its own process: {outcome.error}\n{outcome.traceback}")
    if failed:
        return TransientStepError(f"{step}: {failed[0].error}")
    if code > 128:
        return TransientStepError(f"{step} was killed by signal {code - 128}{_hint(code - 128)}")
    if outcomes:
        return TransientStepError(f"a process of {step} was killed")
    return StepError(f"{step} could not be started: its command ended with exit code {code}")


def _hint(number: int) -> str:
    return ", perhaps because the machine ran out of memory" if number == 9 else ""
