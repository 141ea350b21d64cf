"""Runs one command and sees to it that nothing of it outlives whoever asked for it.

`python -m resources.launchers.supervisor GRACE_S COMMAND...`. It ends the command, and everything that the command
started, when it is asked to (SIGTERM, SIGINT), when its standard input closes (the asker died, however it died), and
when the command itself is over but has left something behind: TERM first, KILL after GRACE_S seconds.

A process group is not enough: torch's elastic agent, under `accelerate launch`, starts its workers in sessions of their
own. On Linux the supervisor therefore adopts every orphan below it, so all of them stay its descendants.

Exits with the command's own code, 128 + n if signal n killed it. Imports nothing heavy: it starts before each step.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_POLL_S = 0.1
_GIVE_UP_S = 10.0  # after KILL: what is still there hangs in the kernel


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent dies; nothing where there is no such call."""
    _prctl(_SET_PARENT_DEATH_SIGNAL, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def supervise(command: list[str], grace_s: float) -> int:
    """Run the command to its end, or to ours; return its exit code."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    die_with_parent(signal.SIGTERM)
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and not asked:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], _POLL_S)
        asked = asked or bool(readable and not os.read(sys.stdin.fileno(), 1))
    code = child.returncode
    end_descendants(grace_s)
    if code is None:
        return 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code


def end_descendants(grace_s: float) -> None:
    """End every process below this one: TERM, KILL after `grace_s` seconds, until none is left."""
    own = psutil.Process()
    for process in (left := own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(left, timeout=grace_s)
    until = time.monotonic() + _GIVE_UP_S
    while (left := own.children(recursive=True)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)  # also reaps orphans, which are our children now


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], float(sys.argv[1])))
