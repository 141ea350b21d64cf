"""What a step without a past run is expected to take: its recipe values and the teacher's shape, by formula.

Only what keeps a GPU busy has a formula. Steps that read, write and sort have none, and stay unknown.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.assets.evals import build_evals, build_throughput
from apriel_assets.assets.h1_builders import build_checkpoint, build_layer_scores, build_probes, build_sft
from apriel_assets.assets.h2_builders import build_audit, build_finalists, build_placements
from apriel_assets.assets.posttraining_builders import build_guard, build_release_rl
from apriel_assets.assets.release_builders import build_release_sft, build_supernet
from apriel_assets.assets.teacher import build_completions
from apriel_assets.capacity.config import CapacityConfig
from apriel_assets.capacity.cost import (
    Cost,
    decode_step_seconds,
    forward_cost,
    generation_cost,
    training_cost,
)
from apriel_assets.capacity.stages import layer_scores_cost, probes_cost, scoring_cost, supernet_cost
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.evaluation.config import EvalConfig
from apriel_assets.evaluation.roofline import ModelShape
from apriel_assets.planning.expected import CAPACITY, Estimate, Expected
from apriel_assets.recipe import Recipe
from apriel_assets.recipe_sections import mixers_per_layer


def capacity_estimate(recipe: Recipe) -> Estimate:
    """Return what a recipe's `capacity` section says of its assets; without one, nothing."""
    if (config := recipe.capacity) is None:
        return lambda asset, partition: Expected()
    formulas = _Formulas(recipe, config)

    def estimate(asset: AssetPlan, partition: str | None) -> Expected:
        if (cost := formulas.cost(asset, partition)) is None:
            return Expected()
        gpus = recipe.execution.of(asset.name, asset.group).gpus or 1
        return Expected(cost.seconds(gpus), cost.gpu_seconds, CAPACITY)

    return estimate


@dataclass(frozen=True)
class _Formulas:
    recipe: Recipe
    config: CapacityConfig

    def cost(self, asset: AssetPlan, partition: str | None) -> Cost | None:
        """Return what one partition takes on one GPU, or None where there is no formula."""
        formula = _BY_BUILDER.get(asset.build)
        return formula(self, {**asset.reads, **asset.by_partition.get(partition, {})}) if formula else None

    @cached_property
    def shape(self) -> ModelShape:
        mixers = self.recipe.mixers
        return self.config.shape.model_shape(window=mixers.swa.window, state_size=mixers.mamba.state_size)

    @property
    def depth(self) -> int:
        return self.config.shape.num_layers

    @property
    def teacher(self) -> tuple[str, ...]:
        return ("fa",) * self.depth

    def replaced(self, k: int) -> tuple[str, ...]:
        """Return a placement of H-k; the order of layers costs nothing."""
        mixer = self.recipe.h1.mixer if self.recipe.h1 else "fa"
        return (mixer,) * k + ("fa",) * (self.depth - k)

    def searched(self) -> tuple[str, ...]:
        """Return a placement with the supernet's mixers in turn, for those that a search will find."""
        mixers = self.recipe.supernet.all_mixers if self.recipe.supernet else ("fa",)
        return tuple(mixers[layer % len(mixers)] for layer in range(self.depth))

    def evaluated(self, asset: str, placement: str | None = None) -> tuple[str, ...]:
        """Return the placement of a model that is evaluated: a checkpoint's, by its asset's key, or a named one."""
        h1 = self.recipe.h1
        if h1 and asset in ("h1/sft", "h1/merge") and h1.sft:
            return self.replaced(h1.sft.step)
        if asset.startswith("h1/h"):
            return self.replaced(int(asset.removeprefix("h1/h")))
        return self.teacher if asset == "teacher" or placement == "safe" else self.searched()

    def trace_tokens(self, train: DistillConfig | None = None) -> int:
        limit = train.max_tokens if train else None
        return min(self.config.trace_tokens, limit or self.config.trace_tokens)

    def completion_tokens(self, trace_tokens: int) -> int:
        return max(1, trace_tokens - self.config.prompt_tokens)

    def answer_tokens(self, most: int) -> int:
        return min(most, self.config.answer_tokens or most)

    def training(self, placement: tuple[str, ...], train: DistillConfig) -> Cost:
        tokens = self.trace_tokens(train)
        one = training_cost(
            self.shape,
            placement,
            tokens,
            self.config.rates,
            loss_tokens=self.completion_tokens(tokens),
            teacher=train.loss != "cross_entropy",
            trains_all=train.trains == "all",
        )
        return one.times(train.steps * train.batch_size)

    def generation(self, placement: tuple[str, ...], num_sequences: int, most: int) -> Cost:
        return generation_cost(
            self.shape,
            placement,
            self.config.rates,
            num_sequences=num_sequences,
            prompt_tokens=self.config.prompt_tokens,
            new_tokens=self.answer_tokens(most),
        )


Reads = Mapping[str, Any]


def _completions(own: _Formulas, reads: Reads) -> Cost:
    store = reads["store"]
    return own.generation(own.teacher, store.problems * store.samples, store.max_new_tokens)


def _layer_scores(own: _Formulas, reads: Reads) -> Cost:
    tokens = own.trace_tokens()
    traces = min(own.recipe.tasks.num_validation_traces, reads["loo"].problems or 10**9)
    one = layer_scores_cost(
        own.shape, own.depth, tokens, own.config.rates, head_tokens=own.completion_tokens(tokens)
    )
    return one.times(traces)


def _probes(own: _Formulas, reads: Reads) -> Cost:
    assert own.recipe.h1 is not None
    schedule, tokens = own.recipe.h1.schedule, own.trace_tokens()
    before = schedule[schedule.index(int(reads["step"].removeprefix("h"))) - 1]
    placement, candidates = own.replaced(before), own.depth - before - len(reads["keep"])
    sequences = reads["steps"] * reads["probe"].batch_size
    loss_tokens = own.completion_tokens(tokens)
    if reads["probe"].trains == "all":
        one = training_cost(own.shape, placement, tokens, own.config.rates, loss_tokens=loss_tokens)
        return one.times(sequences * candidates)
    one = probes_cost(
        own.shape, placement, reads["mixer"], candidates, tokens, own.config.rates, loss_tokens=loss_tokens
    )
    return one.times(sequences)


def _checkpoint(own: _Formulas, reads: Reads) -> Cost:
    return own.training(own.replaced(reads["k"]), reads["distill"])


def _sft(own: _Formulas, reads: Reads) -> Cost:
    return own.training(own.evaluated(reads["parent"]), reads["train"])


def _supernet(own: _Formulas, reads: Reads) -> Cost:
    train, tokens = reads["train"], own.trace_tokens(reads["train"])
    one = supernet_cost(
        own.shape,
        mixers_per_layer(own.depth, reads["mixers"], reads["layers"]),
        tokens,
        own.config.rates,
        loss_tokens=own.completion_tokens(tokens),
        trains_all=train.trains == "all",
    )
    points = train.steps // train.probe_every + 2
    placements = own.recipe.supernet.all_mixers if own.recipe.supernet else ()
    probe = forward_cost(own.shape, own.searched(), tokens, own.config.rates, num_heads=2)
    probes = probe.times(points * (len(placements) + train.random_probes) * train.probe_traces)
    return one.times((train.steps + train.align_steps) * train.batch_size) + probes


def _release_sft(own: _Formulas, reads: Reads) -> Cost:
    return own.training(own.searched(), reads["train"])


def _release_rl(own: _Formulas, reads: Reads) -> Cost:
    train, placement = reads["train"], own.searched()
    sequences = train.steps * train.problems * train.samples
    answer = own.answer_tokens(train.max_new_tokens)
    tokens = own.config.prompt_tokens + answer
    learned = training_cost(
        own.shape,
        placement,
        tokens,
        own.config.rates,
        loss_tokens=answer,
        teacher=False,
        trains_all=train.trains == "all",
    )
    start = forward_cost(own.shape, placement, tokens, own.config.rates, head_tokens=answer)
    total = own.generation(placement, sequences, train.max_new_tokens) + learned.times(
        sequences * train.updates
    )
    return total + start.times(sequences) if train.kl_weight else total


def _guard(own: _Formulas, reads: Reads) -> Cost:
    found = _generated(own, own.teacher, reads["guard"])
    budgets = len(own.recipe.search.budgets) if own.recipe.search else 0
    found += _generated(own, own.searched(), reads["guard"]).times(budgets)
    return found.times(2 * len(reads["heldout"]))  # before and after


def _scored(own: _Formulas, num_placements: int, problems: int | None) -> Cost:
    store = own.recipe.store
    answer = own.answer_tokens(store.max_new_tokens)
    one = scoring_cost(
        own.shape,
        own.searched(),
        own.config.prompt_tokens + answer,
        own.config.rates,
        num_placements=num_placements,
        head_tokens=answer,
    )
    return one.times(min(store.problems, problems or store.problems) * store.samples)


def _placements(own: _Formulas, reads: Reads) -> Cost:
    return _scored(own, reads["search"].max_candidates, reads["estimator"].problems)


def _finalists(own: _Formulas, reads: Reads) -> Cost:
    return _generated(own, own.searched(), reads["accuracy"]).times(reads["num"])


def _audit(own: _Formulas, reads: Reads) -> Cost:
    audit = reads["audit"]
    generated = _generated(own, own.searched(), audit.accuracy).times(audit.placements)
    return generated + _scored(own, audit.placements, reads["estimator"].problems)


def _generated(own: _Formulas, placement: tuple[str, ...], accuracy: EvalConfig) -> Cost:
    return own.generation(placement, accuracy.num_problems, accuracy.max_new_tokens)


def _evals(own: _Formulas, reads: Reads) -> Cost:
    accuracy, placement, tokens = (
        reads["accuracy"],
        own.evaluated(reads["asset"], reads["placement"]),
        own.trace_tokens(),
    )
    rates, compared = own.config.rates, own.completion_tokens(tokens)
    both = forward_cost(own.shape, placement, tokens, rates, head_tokens=compared)
    both += forward_cost(own.shape, own.teacher, tokens, rates, head_tokens=compared)
    return _generated(own, placement, accuracy) + both.times(accuracy.num_problems)


def _throughput(own: _Formulas, reads: Reads) -> Cost:
    speed, placement, rates = (
        reads["throughput"],
        own.evaluated(reads["asset"], reads["placement"]),
        own.config.rates,
    )
    total = Cost()
    for batch_size, context in itertools.product(
        speed.batch_sizes, (*speed.contexts, *speed.decode_contexts)
    ):
        step = decode_step_seconds(own.shape, placement, context, batch_size, rates)
        total += Cost(gpu_seconds=(speed.decode_tokens * speed.repeats + 1) * step)
        if context in speed.contexts:
            prefill = forward_cost(own.shape, placement, context, rates, head_tokens=1)
            total += prefill.times((speed.repeats + 1) * batch_size)
    return total


_BY_BUILDER: Mapping[Callable[..., None], Callable[[_Formulas, Reads], Cost]] = {
    build_completions: _completions,
    build_layer_scores: _layer_scores,
    build_probes: _probes,
    build_checkpoint: _checkpoint,
    build_sft: _sft,
    build_supernet: _supernet,
    build_release_sft: _release_sft,
    build_release_rl: _release_rl,
    build_guard: _guard,
    build_placements: _placements,
    build_finalists: _finalists,
    build_audit: _audit,
    build_evals: _evals,
    build_throughput: _throughput,
}
