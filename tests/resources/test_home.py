"""A disk that takes no more is recognised through every layer that may wrap the error."""

import errno
import multiprocessing
import sqlite3

import pytest

from resources.home import open_instance, prepare_home, storage_problem

FORKED = multiprocessing.get_context("fork")


def wrapped(cause):
    try:
        raise RuntimeError("step failed") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_recognised_bare_and_wrapped(error):
    for seen in (error, wrapped(error), wrapped(wrapped(error))):
        message = str(storage_problem(seen))
        assert "the disk takes no more" in message
        assert "\n" not in message


def test_a_database_server_that_went_away_is_recognised_and_a_mistake_is_not():
    psycopg2 = pytest.importorskip("psycopg2")
    lost = psycopg2.OperationalError("server closed the connection unexpectedly\n\tThis probably means")
    for seen in (lost, wrapped(lost)):
        message = str(storage_problem(seen))
        assert "Dagster's database does not answer: server closed the connection" in message
        assert "run again: finished work is kept" in message
    assert storage_problem(psycopg2.ProgrammingError("relation does not exist")) is None


def test_many_may_open_a_new_home_at_once(tmp_path):
    ready = FORKED.Barrier(5)

    def opened():
        ready.wait(60)
        prepare_home(tmp_path)
        with open_instance(tmp_path) as instance:
            instance.get_runs()

    processes = [FORKED.Process(target=opened) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 5
    with open_instance(tmp_path) as instance:
        assert instance.get_runs() == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "No such file"), ValueError("no space"), KeyError(28)]
)
def test_other_errors_are_left_alone(error):
    assert storage_problem(error) is None
    assert storage_problem(wrapped(error)) is None
