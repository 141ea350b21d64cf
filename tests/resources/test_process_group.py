"""Whatever a step started ends with it: on request, with the asker's death, and out of a session of its own."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from resources.launchers import process_group
from resources.launchers.process_group import ProcessGroup

# A child, a grandchild in a session of its own (as torch's elastic agent starts workers), an orphan of that one, and
# a child that ignores TERM; each writes its pid.
TREE = """
    import os, signal, subprocess, sys, time
    def note():
        open(sys.argv[1] + "/" + str(os.getpid()), "w").close()
    if len(sys.argv) == 2:
        note()
        subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], "session"], start_new_session=True)
        subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], "stubborn"])
    elif sys.argv[2] == "session":
        note()
        subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], "orphan"], start_new_session=True)
        sys.exit()
    elif sys.argv[2] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note()
    else:
        note()
    time.sleep(120)
"""


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(process_group, "GRACE_S", 0.5)


@pytest.fixture
def tree(tmp_path):
    script, pids = tmp_path / "tree.py", tmp_path / "pids"
    script.write_text(textwrap.dedent(TREE))
    pids.mkdir()
    return [sys.executable, str(script), str(pids)], pids


def started(pids: Path, count: int = 4) -> list[int]:
    for _ in range(400):
        if len(found := [int(path.name) for path in pids.iterdir()]) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(list(pids.iterdir()))} of {count} processes started")


def alive(pids: list[int]) -> list[int]:
    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if runs(pid)]


def gone(pids: list[int], seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pids)


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_code_of_the_command(code, expected):
    with ProcessGroup([sys.executable, "-c", code], os.environ) as group:
        assert group.wait(20) == expected


def test_end_leaves_nothing(tree):
    command, pids = tree
    with ProcessGroup(command, os.environ) as group:
        assert group.wait(0.1) is None
        processes = started(pids)
        assert len(alive(processes)) == 3  # the one in between ended by itself
    assert alive([*processes, group.pid]) == []


def test_what_a_finished_command_left_behind_is_ended(tree):
    command, pids = tree
    leaves = textwrap.dedent("""
        import os, subprocess, sys, time
        subprocess.Popen(sys.argv[1:], start_new_session=True)
        while len(os.listdir(sys.argv[-1])) < 4:
            time.sleep(0.05)
    """)
    with ProcessGroup([sys.executable, "-c", leaves, *command], os.environ) as group:
        assert group.wait(20) == 0
    assert alive(started(pids)) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_asker_that_dies_leaves_nothing(tree, number):
    command, pids = tree
    code = textwrap.dedent("""
        import os, signal, sys
        from resources.launchers import process_group
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the test runner may ignore it, and children inherit that
        process_group.GRACE_S = 0.5
        process_group.ProcessGroup(sys.argv[1:], os.environ).wait(120)
    """)
    asker = subprocess.Popen([sys.executable, "-c", code, *command])
    processes = started(pids)
    os.kill(asker.pid, number)
    asker.wait(15)
    assert gone(processes)


def test_killed_supervisor_takes_the_step_with_it(tmp_path):
    """Nobody is left to end it then, so the step itself asks the kernel to."""
    code = textwrap.dedent("""
        import os, pathlib, sys, time
        from resources.launchers.supervisor import die_with_parent
        die_with_parent()
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    """)
    note = tmp_path / "pid"
    with ProcessGroup([sys.executable, "-c", code, str(note)], os.environ) as group:
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        os.kill(group.pid, signal.SIGKILL)
        assert gone([int(note.read_text())], 5)


def test_inherited_files_stay_open_until_all_has_ended(tmp_path):
    """A lease is a lock on one of them: a device must not be free while the step that used it is still being ended."""
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    other = os.open(tmp_path / "lock", os.O_RDWR)
    with ProcessGroup([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, [handle]):
        os.close(handle)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
