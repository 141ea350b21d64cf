"""The 50-layer experiment on one GPU: teacher, progressive conversion, supernet and search, in calls of some minutes.

    python benchmarks/h100_50_layers.py --home H --minutes 8 --carry home.packed \
        --out benchmarks/results/50_layers.json --pictures pictures/50

until it exits with 0 (75: to be continued). Recipe `h100-50-layers`; what each call does, and what it takes:
docs/running-fifty-layers.md. `--carry` lets the calls be on different machines.

Side by side (`side_by_side.py`) the procedures have a home each: `--part start` in one, a copy of it for `--part
h1` and `--part h2`, and at the end `--join` the second into the first. What is timed waits for that, so that nothing
runs beside it.

The teacher is trained into the home first (`train_bundled_teacher.py`), with how it came out in `teacher.json`. Budgets
are set by the costs that were measured: so many layers keep full attention (`--full-layers`) and the rest has the
cheapest mixer; `--set search.budgets=[...]` gives them instead. Beam and surrogate search the same budgets; what one
has scored the other finds stored.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from resumable_run import Clock, Outcome, Stage, arguments, bring_forward, finish, open_home

from apriel_assets.recipe import load_recipe
from apriel_assets.workspace import open_workspace

TEACHER = "teacher-50-layers"  # as in the recipe
# What both procedures read, and what is timed before they share a machine.
_SHARED = ("completions", "layer_scores", "cost_model", "roofline")
# Of the teacher's seconds: what start, points of the curve and removals take beyond them.
MEASURING_SHARE = 0.5
# The same experiment in some minutes on a CPU, to see that it goes through: nothing in it means anything.
SMALL = {
    "layers": 6,
    "hidden_size": 64,
    "teacher_seconds": 30.0,
    "teacher_batch_size": 32,
    "workers": 0,
    "num_test": 10,
    "measure_batch_size": 256,
    "full_layers": [4, 3, 2, 1],
}
_SMALL_TRAINING = "{steps: 4, batch_size: 8, loss: %s, optimizer: muon, save_every: 2}"
SMALL_OVERLAYS = (
    "name=h100-small",
    "teacher.dtype=float32",  # which a CPU is made for
    # What a teacher of seconds gets right now and then: a store without a right answer cannot be searched by.
    "tasks.heldout=[{name: arithmetic, knobs: {steps: [1, 2]}}]",
    "tasks.num_traces=100",
    "tasks.num_validation_traces=20",
    "store={problems: 40, samples: 4, max_new_tokens: 48}",
    "h1.schedule=[3,4,5]",
    "h1.steps={}",
    "h1.probe_steps=2",
    "h1.probe.batch_size=8",
    f"h1.distill={_SMALL_TRAINING % 'reverse_kl'}",
    f"h1.sft={{step: 4, train: {_SMALL_TRAINING % 'cross_entropy'}}}",
    "supernet.train={align_steps: 2, steps: 6, batch_size: 8, optimizer: muon, save_every: 2, probe_every: 3}",
    "costs={contexts: [512], batch_size: 2, repeats: 2, decode_tokens: 2, check_placements: 3}",
    "search.max_candidates=12",
    "search.batch=6",
    "search.starts=4",
    "search.estimator.problems=10",
    "search.accuracy.num_problems=5",
    "search.audit={placements: 4, accuracy: {num_problems: 5, max_new_tokens: 48}}",
    f"release.sft={_SMALL_TRAINING % 'cross_entropy'}",
    "evals.tasks=[recall, arithmetic]",
    "evals.accuracy.num_problems=10",
    "evals.throughput={contexts: [64], decode_contexts: [512], batch_size: 2, decode_tokens: 2, repeats: 1}",
)


def train_teacher(given: argparse.Namespace, clock: Clock) -> bool:
    """Train the teacher into the home; return False if this call is too short for it."""
    final = given.home / TEACHER
    if final.is_dir():
        return True
    needed = given.teacher_seconds * (1 + MEASURING_SHARE)
    if clock.left_s < needed:
        clock.say(f"the teacher takes about {needed:.0f} s, {clock.left_s:.0f} are left")
        return False
    draft = given.home / f".{TEACHER}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    given.home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("train_bundled_teacher.py"))]
    command += ["--seconds", str(given.teacher_seconds), "--layers", str(given.layers)]
    command += ["--hidden-size", str(given.hidden_size), "--batch-size", str(given.teacher_batch_size)]
    command += ["--skip", "0.45", "--dtype", "bfloat16", "--seed", str(given.seed), "--evaluations", "3"]
    command += [
        "--num-validation",
        "40",
        "--num-test",
        str(given.num_test),
        "--num-spread",
        "20",
        "--removed",
    ]
    command += [str(given.layers * tenth // 20) for tenth in range(4, 20, 2)]
    command += ["--measure-batch-size", str(given.measure_batch_size), "--workers", str(given.workers)]
    command += ["--out", str(draft), "--record", str(given.home / "teacher.json")]
    if torch.cuda.is_available():
        command += ["--device", "cuda", *([] if given.no_graph else ["--graph"])]
    clock.say(f"training the teacher for {given.teacher_seconds:.0f} s")
    trained = subprocess.run(command, check=False)
    if trained.returncode and "--graph" in command:
        clock.say("training with CUDA graphs failed; once more without")
        trained = subprocess.run([word for word in command if word != "--graph"], check=False)
    trained.check_returncode()
    draft.rename(final)
    return True


def stages(given: argparse.Namespace) -> list[Stage]:
    """Return what is run, in an order in which few weights are needed at once.

    What is said of budgets waits for the costs, so the list grows once they are measured.
    """
    timed = given.part == "all"  # not if another part runs beside it
    overlays = (f"seed={given.seed}", *given.overlays)
    h1 = load_recipe(given.recipe, overlays).h1
    assert h1 is not None
    assert h1.sft is not None
    first = [k for k in h1.schedule if k <= h1.sft.step]
    early = ("teacher", *(f"h{k}" for k in first), "sft", "merge")
    late = [f"h{k}" for k in h1.schedule if k not in first]
    progressive = [_evals(early, timed=timed), *([_evals(late, timed=timed)] if late else [])]
    parts = {
        "start": [_SHARED],
        "h1": [_SHARED, *progressive],
        "h2": [_SHARED],
        "all": [*progressive, ("cost_model",)],
    }
    found = [Stage(recipe=given.recipe, select=select, overlays=overlays) for select in parts[given.part]]
    if given.part in ("start", "h1"):
        return found
    budgets = _budget_overlays(given, found[-1])
    if budgets is None:
        return found
    overlays = (*overlays, *budgets)
    other = (
        *overlays,
        "search.strategy=surrogate",
        f"name={load_recipe(given.recipe, overlays).name}-surrogate",
    )
    # What reads the supernet, the largest artifact, comes before the matryoshka that replaces it.
    searched = ("finalists", "audit", *(["cost_check"] if timed else []), *_evals(["b*"], timed=timed))
    shipped = () if timed else _evals(["safe", "turbo*"], timed=timed)
    surrogate = Stage(recipe=given.recipe, select=("finalists",), overlays=other)
    return [
        *found[:-1],
        Stage(recipe=given.recipe, select=searched, overlays=overlays),
        *([] if given.no_surrogate else [surrogate]),
        Stage(recipe=given.recipe, select=shipped, overlays=overlays),
    ]


def _evals(models: Sequence[str], *, timed: bool) -> tuple[str, ...]:
    kinds = ("evals", "throughput") if timed else ("evals",)
    return tuple(f"{kind}/{model}" for model in models for kind in kinds)


def _budget_overlays(given: argparse.Namespace, costs: Stage) -> list[str] | None:
    """Return the budgets that the measured costs lead to, none if they are given, or None before costs are there."""
    if any(overlay.startswith("search.budgets=") for overlay in given.overlays):
        return []
    with open_workspace(costs.recipe, given.home, costs.overlays) as workspace:
        plan = workspace.plan(workspace.selection(["cost_model"], None))
        # Fresh by its own inputs it also is where these are to be measured again, for another seed say.
        artifact = plan.settled.get(("cost_model", None))
    if artifact is None:
        return None
    per_mixer = json.loads((artifact.path / "costs.json").read_text())["per_mixer"]
    cheapest = min(cost for mixer, cost in per_mixer.items() if mixer != "fa")
    shares = (full / given.layers for full in given.full_layers)
    # Up, so that so many layers fit.
    budgets = [math.ceil(100 * (share + (1 - share) * cheapest)) / 100 for share in shares]
    return [f"search.budgets={json.dumps(list(dict.fromkeys(budgets)))}"]


def parse() -> argparse.Namespace:
    """Return the options; the defaults are the experiment."""
    parser = arguments(__doc__, recipe="h100-50-layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--hidden-size", type=int, default=160)
    parser.add_argument("--teacher-seconds", type=float, default=250.0)
    parser.add_argument("--teacher-batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=min(12, (os.cpu_count() or 2) - 1))
    parser.add_argument(
        "--num-test", type=int, default=200, help="test problems per task of the teacher's accuracy"
    )
    parser.add_argument("--measure-batch-size", type=int, default=4096)
    parser.add_argument("--no-graph", action="store_true", help="train the teacher without CUDA graphs")
    parser.add_argument(
        "--full-layers",
        type=int,
        nargs="+",
        default=[20, 15, 10, 5],
        help="layers of full attention by budget",
    )
    parser.add_argument("--part", choices=("start", "h1", "h2", "all"), default="all")
    parser.add_argument("--no-surrogate", action="store_true", help="search by beam alone")
    parser.add_argument("--small", action="store_true", help="a few layers and steps, for a CPU")
    given = parser.parse_args()
    if given.small:
        vars(given).update(SMALL)
        given.overlays = [*SMALL_OVERLAYS, *given.overlays]
    return given


def main() -> int:
    """Go on with the experiment for as long as this call may take."""
    given = parse()
    clock = Clock(given.minutes)
    open_home(given, clock)
    if not train_teacher(given, clock):
        return finish(given, "cut", [], clock)
    found: list[Stage] = []
    outcome: Outcome = "done"
    while outcome == "done" and len(found) < len(longer := stages(given)):
        found = longer
        outcome = bring_forward(given.home, found, clock)
    # Packed with what the whole recipe reads, of which the stages so far may be a part.
    return finish(given, outcome, [*found, Stage(recipe=given.recipe, overlays=found[-1].overlays)], clock)


if __name__ == "__main__":
    sys.exit(main())
