"""Do the published lessons hold? Variants of one recipe that differ in what a lesson is about, over several seeds.

    python benchmarks/lessons.py --home H --recipe quickstart --minutes 600 --out benchmarks/results/lessons.json
    python benchmarks/lessons.py --home H --recipe h100-50-layers --minutes 8 --carry lessons.packed --out F.json

Each lesson says which of two variants should be better, and at which steps of the schedule. They are compared on the
same problems, seed by seed (`apriel compare`: paired bootstrap over problems and seeds, sign-flip test), by accuracy:

- holds: the variant that was published as better is better;
- does not hold: the other one is;
- cannot tell: no detectable difference; how large one may still hide stands beside it.

Variants of a seed share what they have in common. Seeds and lessons may be shared out among homes of one recipe and the
same overlays, which `--join` brings together. Resumable as `resumable_run.py` says. For `h100-50-layers` the home must
hold the teacher (`h100_50_layers.py` trains it).
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resumable_run import Clock, Outcome, Stage, arguments, bring_forward, open_home, pack, say_outcome

from apriel_assets.comparing import compare_models
from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.recipe import Recipe, load_recipe
from resources.lake import Lake
from resources.provenance import environment

BASE = "base"  # mapped Mamba, easiest first, MMR order, reverse KL on traces, step by step
ONE_SHOT, PLAIN_TEXT = "one_shot", "plain_text"
_TEXTS = "plain_text.jsonl"  # in the home
# What a variant changes of the recipe; those of ONE_SHOT and PLAIN_TEXT depend on the home, see `_changes`.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    BASE: (),
    "loo_order": ("h1.order=loo",),
    "reverse_order": ("h1.order=reverse_loo",),
    "random_mamba": ("h1.init=random",),
    "gdn": ("h1.mixer=gdn",),
    "random_gdn": ("h1.mixer=gdn", "h1.init=random"),
    "kda": ("h1.mixer=kda",),
    "random_kda": ("h1.mixer=kda", "h1.init=random"),
    "forward_kl": ("h1.distill.loss=forward_kl",),
    ONE_SHOT: (),
    PLAIN_TEXT: (),
}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A published claim: one variant is better than another."""

    name: str
    claim: str
    better: str
    worse: str
    at: str  # first, middle (the third step), later (from the third on)


_CLAIMS = (  # name, claim, better, worse, at
    ("MMR", "order by probes beats order by leave-one-out", BASE, "loo_order", "later"),
    ("order", "easiest first beats hardest first", BASE, "reverse_order", "first"),
    ("MIL", "Mamba mapped from attention beats random Mamba", BASE, "random_mamba", "first"),
    ("DIL", "GDN mapped from attention beats random GDN", "gdn", "random_gdn", "first"),
    ("KIL", "KDA mapped from attention beats random KDA", "kda", "random_kda", "first"),
    ("reverse KL", "reverse KL beats forward KL", BASE, "forward_kl", "first"),
    ("staged", "step by step beats all at once, same layers and steps", BASE, ONE_SHOT, "middle"),
    ("traces", "reasoning traces beat text of the same words", BASE, PLAIN_TEXT, "first"),
)
LESSONS = tuple(
    Lesson(name=name, claim=claim, better=better, worse=worse, at=at)
    for name, claim, better, worse, at in _CLAIMS
)


def steps_of(lesson: Lesson, schedule: Sequence[int]) -> tuple[int, ...]:
    """Return at which steps of a schedule a lesson is looked at."""
    middle = min(2, len(schedule) - 1)
    return {"first": tuple(schedule[:1]), "middle": (schedule[middle],), "later": tuple(schedule[middle:])}[
        lesson.at
    ]


def stages(given: argparse.Namespace, home: Path) -> list[Stage]:
    """Return what is not recorded yet; base first, seed by seed.

    The one-shot variant replaces the layers that base has replaced, so it comes when base is there.
    """
    recipe = load_recipe(given.recipe, given.overlays)
    wanted: dict[str, set[int]] = {}
    for lesson in given.lessons:
        for variant in (lesson.better, lesson.worse):
            wanted.setdefault(variant, set()).update(steps_of(lesson, recipe.h1.schedule))
    found = []
    for seed in given.seeds:
        for variant in (name for name in VARIANTS if name in wanted):
            steps = tuple(sorted(wanted[variant]))
            name = run_name(variant, seed)
            if is_recorded(home, name, steps, recipe):
                continue
            if (changes := _changes(variant, seed, home, recipe, steps)) is None:
                continue
            overlays = (*given.overlays, f"seed={seed}", f"name={name}", *changes)
            select = tuple(f"evals/h{k}" for k in steps)
            found.append(Stage(recipe=given.recipe, select=select, overlays=overlays))
    return found


def run_name(variant: str, seed: int) -> str:
    """Return the recipe name under which the lake has a variant's rows."""
    return f"{variant}-s{seed}"


def is_recorded(home: Path, name: str, steps: Sequence[int], recipe: Recipe) -> bool:
    """Tell whether all evals of a variant's steps are in the lake."""
    if not (home / "lake").is_dir():
        return False
    rows = Lake(home).read("evals", name).to_pylist()
    there = {(row["model"], row["task"]) for row in rows}
    return all((f"h{k}", task.task) in there for k in steps for task in recipe.evals.tasks)


def _changes(
    variant: str, seed: int, home: Path, recipe: Recipe, steps: Sequence[int]
) -> tuple[str, ...] | None:
    """Return a variant's overlays; None: they depend on what is not there yet."""
    if variant == PLAIN_TEXT:
        text = home / _TEXTS
        if not text.is_file():
            write_plain_text(text, recipe)
        task = {"file": _TEXTS, "split_by": "file", "label": PLAIN_TEXT}
        return (f"tasks.train={json.dumps([task])}",)
    if variant != ONE_SHOT:
        return VARIANTS[variant]
    (last,) = steps
    if (placement := _placement(home, run_name(BASE, seed), f"h{last}")) is None:
        return None
    layers = [layer for layer, mixer in enumerate(placement) if mixer != "fa"]
    num_steps = sum(recipe.h1.distill_of(k).steps for k in recipe.h1.schedule if k <= last)
    return (f"h1.schedule=[{last}]", f"h1.order={layers}", "h1.steps={}", f"h1.distill.steps={num_steps}")


def _placement(home: Path, name: str, model: str) -> list[str] | None:
    if not (home / "lake").is_dir():
        return None
    rows = Lake(home).read("checkpoints", name).to_pylist()
    return next((row["placement"] for row in rows if row["model"] == model), None)


def write_plain_text(path: Path, recipe: Recipe) -> None:
    """Write as many texts as the recipe has traces: its words in their usual order of two, and no problem in them.

    A word follows another as often as in the traces, and texts are as long, so what is missing is what is reasoned.
    Their second halves are trained on.
    """
    from apriel_assets.evaluation.tasks.problems import make_problems

    share = -(-recipe.tasks.num_traces // len(recipe.tasks.train))
    problems = [
        own for task in recipe.tasks.train for own in make_problems(task, "train", share, recipe.seed)
    ]
    texts = [f"{own.prompt}{own.trace}".split() for own in problems]
    following: dict[str, list[str]] = {}
    for words in texts:
        for word, after in itertools.pairwise(words):
            following.setdefault(word, []).append(after)
    rng = random.Random(recipe.seed)
    written: dict[str, str] = {}  # rows are told apart by their prompts
    while len(written) < len(texts):
        example = rng.choice(texts)
        words = [example[0]]
        while len(words) < len(example):
            words.append(rng.choice(following.get(words[-1]) or example))
        half = len(words) // 2
        written[" ".join(words[:half])] = " ".join(words[half:])
    rows = ({"prompt": first, "trace": f" {rest}", "answer": rest} for first, rest in written.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def verdicts(given: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    """Return a row per lesson and step, with its plain verdict."""
    lake, schedule = Lake(home), load_recipe(given.recipe, given.overlays).h1.schedule
    rows = []
    for lesson in given.lessons:
        for k in steps_of(lesson, schedule):
            better, worse = (
                ",".join(f"{run_name(variant, seed)}:h{k}" for seed in given.seeds)
                for variant in (lesson.better, lesson.worse)
            )
            overall = [own for own in compare_models(lake, better, worse).rows if own.task == OVERALL]
            metrics = {own.metric: own.as_json() for own in overall}
            told = metrics["accuracy"]["better"]
            verdict = {"a": "holds", "b": "does not hold", None: "cannot tell"}[told]
            row = {"lesson": lesson.name, "claim": lesson.claim, "model": f"h{k}", "verdict": verdict}
            rows.append({**row, "better": lesson.better, "worse": lesson.worse, "metrics": metrics,
                         "accuracy_by_seed": _by_seed(lake, lesson, k, given.seeds)})  # fmt: skip
    return rows


def _by_seed(lake: Lake, lesson: Lesson, k: int, seeds: Sequence[int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for variant in (lesson.better, lesson.worse):
        for seed in seeds:
            rows = lake.read("evals", run_name(variant, seed)).to_pylist()
            own = [r["value"] for r in rows if r["model"] == f"h{k}" and r["metric"] == "accuracy"]
            found.setdefault(variant, []).append(sum(own) / len(own))
    return found


def main() -> int:
    """Run what is missing for as long as this call may take; write the result file when all is there."""
    parser = arguments(__doc__, recipe="quickstart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--lessons", nargs="+", choices=[lesson.name for lesson in LESSONS], help="all if not given"
    )
    given = parser.parse_args()
    given.lessons = [lesson for lesson in LESSONS if given.lessons is None or lesson.name in given.lessons]
    # Of these no lesson speaks, and every asset less is planned faster.
    given.overlays += ["h1.sft=null", "h1.merge=null", "supernet=null", "search=null", "release={}"]
    clock = Clock(given.minutes)
    home = open_home(given, clock)
    outcome: Outcome = "done"
    while outcome == "done" and (missing := stages(given, home)):
        outcome = bring_forward(home, missing[:1], clock)
    if given.carry is not None:
        pack(home, given.carry, stages(given, home), clock)
    if outcome != "done":
        return say_outcome(outcome, clock)
    rows = verdicts(given, home)
    content = {"recipe": given.recipe, "overlays": given.overlays, "seeds": given.seeds, **environment()}
    if given.out is not None:
        given.out.write_text(json.dumps({**content, "lessons": rows}, indent=1) + "\n")
    for row in rows:
        found = row["metrics"]["accuracy"]
        interval = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        print(f"{row['lesson']:11} {row['model']:4} {interval:26} {row['verdict']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
