"""Programs side by side: in order, each once, and whoever waits for one that failed does not start."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import lessons
import side_by_side
from side_by_side import Job, Session, jobs

# Notes that it ran, in its home, and ends as its last argument says.
PROGRAM = """
import sys, pathlib
home = pathlib.Path(sys.argv[sys.argv.index("--home") + 1])
home.mkdir(exist_ok=True)
with (home / "ran").open("a") as file:
    file.write(home.name + " ")
sys.exit(int(sys.argv[sys.argv.index("--ends") + 1]))
"""


def options(directory, **changes):
    plain = {
        "directory": directory,
        "minutes": 5.0,
        "teacher": None,
        "smollm2": None,
        "jobs": None,
        "gpus": 2,
        "small": False,
    }
    return argparse.Namespace(**{**plain, **changes})


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(*own, **changes):
        listed = [
            Job(
                name=name, gpu=0, script=str(tmp_path / "program.py"), arguments=("--ends", str(ends)), **more
            )
            for name, ends, more in own
        ]
        monkeypatch.setattr(side_by_side, "jobs", lambda given: listed)
        return Session(options(tmp_path, **changes)).run()

    return run


def ran(directory, name):
    path = directory / name / "ran"
    return path.read_text().split() if path.exists() else []


def test_a_copy_goes_on_from_where_the_first_ended_and_nothing_runs_twice(run, tmp_path):
    own = ("start", 0, {}), ("part", 0, {"after": ("start",), "copied": "start"})
    assert run(*own) == 0
    assert ran(tmp_path, "part") == ["start", "part"]
    assert run(*own) == 0
    assert (ran(tmp_path, "start"), ran(tmp_path, "part")) == (["start"], ["start", "part"])


def test_what_waits_for_a_failed_program_does_not_start_and_others_end(run, tmp_path):
    assert run(("bad", 1, {}), ("waits", 0, {"after": ("bad",)}), ("other", 0, {})) == 1
    assert not ran(tmp_path, "waits")
    assert ran(tmp_path, "other") == ["other"]


def test_what_is_cut_is_to_be_continued(run, tmp_path):
    assert run(("long", 75, {}), ("after", 0, {"after": ("long",)})) == 75
    assert run(("long", 0, {}), ("after", 0, {"after": ("long",)})) == 0
    assert ran(tmp_path, "long") == ["long", "long"]
    assert ran(tmp_path, "after") == ["after"]


def test_without_time_nothing_starts(run, tmp_path):
    assert run(("long", 0, {}), minutes=0.5) == 75
    assert not ran(tmp_path, "long")


def test_programs_cover_every_lesson_and_wait_for_what_there_is(tmp_path):
    found = jobs(options(tmp_path, smollm2=tmp_path / "model.gguf"))
    names = [job.name for job in found]
    assert len(set(names)) == len(names)
    assert sorted(name for own in side_by_side.LESSONS.values() for name in own) == sorted(
        own.name for own in lessons.LESSONS
    )
    assert set(side_by_side.FEW_LESSONS) <= {own.name for own in lessons.LESSONS}
    for index, job in enumerate(found):
        assert set(job.after) <= set(names[:index])
        assert job.copied is None or job.copied in job.after
    # Speed is measured when all else is done, and SmolLM2's after that.
    by_name = {job.name: job for job in found}
    last = "whole", "smollm2-untimed", "smollm2"
    assert set(by_name["whole"].after) == set(names).difference(last)
    assert set(by_name["smollm2"].after) == set(names) - {"smollm2"}


@pytest.mark.parametrize("gpus", [1, 2])
def test_costs_are_measured_with_a_gpu_to_themselves(tmp_path, gpus):
    found = jobs(options(tmp_path, smollm2=tmp_path / "model.gguf", teacher=tmp_path / "teacher", gpus=gpus))
    assert {job.gpu for job in found} == set(range(gpus))
    start = found[0]
    assert start.name == "start"
    beside = [job.name for job in found[1:] if job.gpu == start.gpu and start.name not in job.after]
    others = {"whole", "smollm2", "lessons", "lessons-few"}  # which wait for something that waits for it
    assert set(beside) <= others


def test_names_that_there_are_not_and_copies_of_nothing_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--jobs h3: there are start, h2, h1"):
        jobs(options(tmp_path, jobs=["h3"]))
    with pytest.raises(SystemExit, match="h1 begins as a copy of start"):
        jobs(options(tmp_path, jobs=["h1"]))
    assert [job.name for job in jobs(options(tmp_path, jobs=["start", "h1"]))] == ["start", "h1"]


def test_an_error_ends_the_programs_that_run(run, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text("import time; time.sleep(600)")
    started = []
    begin = Session._started
    monkeypatch.setattr(Session, "_started", lambda *a: started.append(begin(*a)) or started[-1])
    monkeypatch.setattr(Session, "_collect", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(("long", 0, {}), ("other", 0, {}))
    assert [process.returncode for process in started] == [-15, -15]


def test_more_gpus_than_there_are_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as error:
        side_by_side.main(["--directory", str(tmp_path / "d"), "--gpus", "2"])
    assert error.value.code == 2
    assert "--gpus 2: there is 1" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
