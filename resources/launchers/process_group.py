"""A command under a supervisor (`supervisor.py`): it can be waited for, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

GRACE_S = 5.0  # between TERM and KILL
_END_S = GRACE_S + 8.0  # then the supervisor itself is killed


class ProcessGroup:
    """A running command in a session of its own; ends with the block, and with this process."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        """Start it.

        Args:
            command: program and arguments.
            environment: of the command, whole.
            inherited: open file descriptors that stay open until everything has ended.
        """
        supervisor = [sys.executable, "-m", "resources.launchers.supervisor", str(GRACE_S)]
        self._process = subprocess.Popen(
            [*supervisor, *command],
            env=dict(environment),
            # Never written to: it closes with this process, even if that is killed.
            stdin=subprocess.PIPE,
            # A Ctrl-C in the terminal reaches this process alone, which then ends the group in order.
            start_new_session=True,
            pass_fds=tuple(inherited),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, 128 + n after signal n, or None if it still runs after `timeout_s` seconds."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """End the command and everything that it started; return when all is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        except BaseException:
            # A second interrupt while we wait: the supervisor has been told and goes on without us.
            self._process.terminate()
            raise
