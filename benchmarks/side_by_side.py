"""The 50-layer experiment, its lessons over three seeds, SmolLM2: side by side on one or two GPUs, in calls of minutes.

    python benchmarks/side_by_side.py --directory D --minutes 9 --smollm2 MODEL.gguf

again and again until it exits with 0 (75: to be continued; 1: a program failed, the next call starts it again). Thin
models leave most of a GPU idle, so several programs share each. What is timed runs first or last, with its GPU to
itself: costs before the procedures part, throughput and what the cost model predicts of it when all else is done, and
SmolLM2's after that. Each program has a home of its own in the directory, and a log beside it; what it is: `jobs`.
docs/fifty-layers.md says what comes out.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from h100_50_layers import SMALL_OVERLAYS, TEACHER
from resumable_run import EXIT_CODES

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
# The first need the whole schedule, the others its first step: about as long each.
LESSONS = {"orders": ("MMR", "staged"), "starts": ("order", "MIL", "DIL", "KIL", "reverse KL", "traces")}
# Trained for the whole first step, every variant comes near the teacher, and nothing can be told: a fifth of it, then.
FEW_STEPS = "few"
FEW_LESSONS = ("MIL", "DIL", "KIL", "reverse KL")
FEW_OVERLAYS = ("h1.steps={}", "h1.distill.steps=20")
# Of SmolLM2, what may run beside others: what is timed, and what needs the costs, waits.
_SMOLLM2_UNTIMED = ("supernet", "evals/teacher", "evals/h*")
_END_S = 20.0  # to save what was cut
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """One program and its home."""

    name: str
    gpu: int
    script: str
    arguments: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # jobs that must be done
    copied: str | None = None  # the home that its own begins as


def jobs(given: argparse.Namespace) -> list[Job]:
    """Return all programs; one that is listed earlier is started earlier."""
    small = ("--small",) if given.small else ()
    overlays = [word for overlay in SMALL_OVERLAYS for word in ("--set", overlay)] if given.small else []

    def fifty(name: str, part: str, *more: str, after: Sequence[str] = (), copied: str | None = None) -> Job:
        own = ("--part", part, *small, *more)
        # The supernet and its search take longest, so progressive conversion leaves them that GPU.
        gpu = _other(given) if part == "h1" else 0
        return Job(
            name=name, gpu=gpu, script="h100_50_layers.py", arguments=own, after=tuple(after), copied=copied
        )

    found = [fifty("start", "start")]
    found += [fifty(part, part, after=["start"], copied="start") for part in ("h2", "h1")]
    found += _lessons(given, overlays)
    last = ("--join", str(given.directory / "h2"), *_results(given, "50_layers"))
    found.append(fifty("whole", "all", *last, after=[own.name for own in found], copied="h1"))
    if given.smollm2 is not None:
        found += _smollm2(given, found)
    return _chosen(given, found)


def _smollm2(given: argparse.Namespace, others: Sequence[Job]) -> list[Job]:
    """Return the program of what is not timed, once the others' costs are measured, and that of the rest, after all."""
    own = ("--recipe", "h100-smollm2", "--set", f"teacher.model={given.smollm2}")
    first = Job(
        name="smollm2-untimed",
        gpu=_other(given),
        script="resumable_run.py",
        arguments=(*own, "--select", *_SMOLLM2_UNTIMED),
        after=("start",),
    )
    rest = Job(
        name="smollm2",
        gpu=0,
        script="resumable_run.py",
        arguments=(*own, *_results(given, "smollm2")),
        after=(*(job.name for job in others), first.name),
        copied=first.name,
    )
    return [first, rest]


def _other(given: argparse.Namespace) -> int:
    """Return the second GPU, or the first if that is the only one."""
    return given.gpus - 1


def _lessons(given: argparse.Namespace, overlays: Sequence[str]) -> list[Job]:
    """Return a program for each kind and seed, and for each result one that joins their homes."""
    few = [word for overlay in FEW_OVERLAYS for word in ("--set", overlay)]
    plain = ("--recipe", "h100-50-layers", *overlays)
    found = []

    def program(kind: str, seed: int, options: Sequence[str], lessons: Sequence[str]) -> str:
        # A share of them beside the procedures, once the costs are measured.
        gpu = 0 if (kind, seed) == ("orders", SEEDS[-1]) else _other(given)
        after = () if given.teacher and gpu else ("start",)
        own = (*options, "--seeds", str(seed), "--lessons", *lessons)
        name = f"lessons-{kind}-{seed}"
        found.append(Job(name=name, gpu=gpu, script="lessons.py", arguments=own, after=after))
        return name

    def joined(name: str, options: Sequence[str], lessons: Sequence[str], homes: Sequence[str]) -> None:
        others = [str(given.directory / home) for home in homes[1:]]
        out = str(given.directory / f"{name.replace('-', '_')}_50_layers.json")
        own = (*options, "--seeds", *map(str, SEEDS), "--lessons", *lessons, "--join", *others, "--out", out)
        found.append(
            Job(
                name=name,
                gpu=_other(given),
                script="lessons.py",
                arguments=own,
                after=tuple(homes),
                copied=homes[0],
            )
        )

    homes = [program(kind, seed, plain, own) for kind, own in LESSONS.items() for seed in SEEDS]
    joined("lessons", plain, [own for group in LESSONS.values() for own in group], homes)
    homes = [program(FEW_STEPS, seed, (*plain, *few), FEW_LESSONS) for seed in SEEDS]
    joined(f"lessons-{FEW_STEPS}", (*plain, *few), FEW_LESSONS, homes)
    return found


def _chosen(given: argparse.Namespace, found: list[Job]) -> list[Job]:
    """Return the jobs that were asked for.

    Raises:
        SystemExit: a name that none has, or a job that begins as a copy of what is neither asked for nor there.
    """
    names = given.jobs or [job.name for job in found]
    if unknown := sorted(set(names) - {job.name for job in found}):
        raise SystemExit(f"--jobs {' '.join(unknown)}: there are {', '.join(job.name for job in found)}")
    chosen = [job for job in found if job.name in names]
    for job in chosen:
        if job.copied not in (None, *names) and not (given.directory / job.copied).is_dir():
            raise SystemExit(f"--jobs {job.name} begins as a copy of {job.copied}; add that, or run it first")
    return chosen


def _results(given: argparse.Namespace, name: str) -> tuple[str, ...]:
    return ("--out", str(given.directory / f"{name}.json"), "--pictures", str(given.directory / name))


class Session:
    """One call: starts what may start, until all is done or time is up."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.jobs = given, jobs(given)
        self.ends = time.monotonic() + 60 * given.minutes
        self.running: dict[str, subprocess.Popen] = {}
        self.failed: set[str] = set()

    def run(self) -> int:
        """Return 0 when all is done, 75 when there is more to do, 1 if a program failed."""
        try:
            while True:
                self._start()
                if not self.running:
                    break
                time.sleep(_POLL_S)
                self._collect()
        finally:  # of an error or an interrupt: no program goes on without us
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.wait()
        if self.failed:
            return EXIT_CODES["failed"]
        return EXIT_CODES["done" if all(map(self._is_done, self.jobs)) else "cut"]

    def _is_done(self, job: Job) -> bool:
        return (self.given.directory / f"{job.name}.done").exists()

    def _start(self) -> None:
        left_s = self.ends - time.monotonic() - _END_S
        if left_s < _END_S:
            return
        waiting = {job.name for job in self.jobs if not self._is_done(job)}
        for job in self.jobs:
            started = job.name not in waiting or job.name in {*self.failed, *self.running}
            if started or not waiting.isdisjoint(job.after):
                continue
            self.running[job.name] = self._started(job, left_s)

    def _started(self, job: Job, left_s: float) -> subprocess.Popen:
        home = self.given.directory / job.name
        if job.copied is not None:
            _copy(self.given.directory / job.copied, home)
        teacher = self.given.teacher or self.given.directory / "start" / TEACHER
        if teacher.exists():
            _copy(teacher, home / TEACHER)
        command = [sys.executable, str(HERE / job.script), "--home", str(home)]
        command += ["--minutes", f"{left_s / 60:.2f}", *job.arguments]
        print(f"{job.name}: started", flush=True)
        with (self.given.directory / f"{job.name}.log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(job))

    def _environment(self, job: Job) -> Mapping[str, str]:
        # Each of a dozen programs with as many threads as there are cores would hold up all others.
        own = {"CUDA_VISIBLE_DEVICES": str(job.gpu), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
        return {**os.environ, **own}

    def _collect(self) -> None:
        for name, process in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[name]
            print(f"{name}: exit code {code}", flush=True)
            if code == EXIT_CODES["done"]:
                (self.given.directory / f"{name}.done").touch()
            elif code == EXIT_CODES["cut"]:
                self.ends = min(self.ends, time.monotonic())  # its time was up, so is this call's
            else:
                self.failed.add(name)


def _copy(source: Path, target: Path) -> None:
    """Copy a directory, whole or not at all, if it is not there yet."""
    if target.exists():
        return
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft)
    draft.rename(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Go on for as long as this call may take."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True, help="of all homes, logs and results")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--teacher", type=Path, help="of 50 layers, if it is trained already")
    parser.add_argument("--smollm2", type=Path, help="GGUF file or directory of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--gpus",
        type=int,
        choices=(1, 2),
        default=min(2, max(1, torch.cuda.device_count())),
        help="to share; all that there are, up to two",
    )
    parser.add_argument("--jobs", nargs="+", help="names of homes; all if not given")
    parser.add_argument("--small", action="store_true", help="a few layers and steps, for a CPU")
    given = parser.parse_args(arguments)
    # A GPU that is not there would be a CPU, silently.
    if 0 < torch.cuda.device_count() < given.gpus:
        parser.error(f"--gpus {given.gpus}: there is {torch.cuda.device_count()}")
    given.directory = given.directory.absolute()
    given.directory.mkdir(parents=True, exist_ok=True)
    for name in ("teacher", "smollm2"):
        if (path := getattr(given, name)) is not None:
            setattr(given, name, path.absolute())
    # `kill` ends the programs, too: as an exception, it passes through the session.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return Session(given).run()


if __name__ == "__main__":
    sys.exit(main())
