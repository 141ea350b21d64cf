"""Placement sampling: frequencies against enumeration, purity, refusals."""

import os
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest

from apriel_assets.distillation.config import LayoutConfig, SupernetConfig
from apriel_assets.distillation.sampling import Arrangements, PlacementSampler, sample_named
from apriel_assets.errors import UserError

MIXERS = (("fa", "swa", "gdn"), ("fa", "swa"), ("gdn", "fa", "swa"), ("kda",))
LAYOUTS = (
    LayoutConfig(placement=("fa", "fa", "gdn", "kda"), probability=1),
    LayoutConfig(placement=("gdn", "swa", "fa", "kda"), probability=3),
)
CONFIGS = {
    "uniform": SupernetConfig(),
    "weighted": SupernetConfig(sampling="weighted", weights={"fa": 0.0, "gdn": 3.0}),
    "allocations": SupernetConfig(sampling="allocations"),
    "layouts": SupernetConfig(sampling="layouts", layouts=LAYOUTS),
}


def frequencies(draw, num):
    counts = Counter(draw(step) for step in range(num))
    return {placement: count / num for placement, count in counts.items()}


def assert_drawn(observed, expected, num):
    assert observed.keys() == expected.keys()
    for placement, p in expected.items():
        # five standard deviations of a binomial share
        assert observed[placement] == pytest.approx(p, abs=5 * (p * (1 - p) / num) ** 0.5), placement


def test_uniform_draws_every_placement_alike():
    sampler = PlacementSampler(MIXERS, CONFIGS["uniform"], seed=0)
    expected = dict.fromkeys(product(*MIXERS), 1 / 18)
    assert_drawn(frequencies(sampler.placement, 6000), expected, 6000)


def test_weighted_draws_by_weight_and_leaves_zeros_out():
    sampler = PlacementSampler(MIXERS, CONFIGS["weighted"], seed=0)
    # fa 0, gdn 3, swa 1: layers 0 and 2 take gdn in three of four, layer 1 only swa
    share = {"gdn": 0.75, "swa": 0.25}
    expected = {(a, "swa", b, "kda"): share[a] * share[b] for a, b in product(share, share)}
    assert_drawn(frequencies(sampler.placement, 4000), expected, 4000)


def by_allocation(mixers):
    """Every placement's probability by enumeration: count vectors alike, then arrangements alike."""
    groups: dict[tuple, list] = {}
    for placement in product(*mixers):
        groups.setdefault(tuple(sorted(Counter(placement).items())), []).append(placement)
    return {placement: 1 / len(groups) / len(group) for group in groups.values() for placement in group}


@pytest.mark.parametrize(
    "mixers",
    [
        (("fa", "gdn"),) * 4,
        MIXERS,
        # every mixer fits by itself with any count up to 2, but 2 fa + 2 gdn do not fit together
        (("fa", "gdn"), ("fa", "gdn"), ("swa", "kda"), ("swa", "kda")),
    ],
)
def test_allocations_are_uniform_and_so_are_their_arrangements(mixers):
    sampler = PlacementSampler(mixers, CONFIGS["allocations"], seed=0)
    assert_drawn(frequencies(sampler.placement, 8000), by_allocation(mixers), 8000)


def test_allocations_of_a_large_model_reach_the_ends():
    sampler = PlacementSampler((("fa", "swa", "gdn", "kda", "mamba"),) * 50, CONFIGS["allocations"], seed=0)
    most = [max(Counter(sampler.placement(step)).values()) for step in range(200)]
    # With uniform mixers per layer, 25 of 50 alike has probability 1e-5.
    assert sum(count >= 25 for count in most) > 40


def test_arrangements_keep_the_counts_they_are_given():
    import random

    arrangements = Arrangements([("fa", "gdn"), ("fa", "gdn", "swa"), ("gdn", "swa")])
    for seed in range(20):
        placement = arrangements.arrange((1, 1, 1), random.Random(seed))  # fa, gdn, swa
        assert sorted(placement) == ["fa", "gdn", "swa"]
        assert placement[0] != "swa"
        assert placement[2] != "fa"


def test_layouts_come_with_their_probabilities():
    sampler = PlacementSampler(MIXERS, CONFIGS["layouts"], seed=0)
    expected = {LAYOUTS[0].placement: 0.25, LAYOUTS[1].placement: 0.75}
    assert_drawn(frequencies(sampler.placement, 2000), expected, 2000)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_has_its_placement_whatever_was_drawn_before(name):
    steps = range(40)
    forward = PlacementSampler(MIXERS, CONFIGS[name], seed=3)
    backward = PlacementSampler([tuple(reversed(names)) for names in MIXERS], CONFIGS[name], seed=3)
    drawn = [forward.placement(step) for step in steps]
    assert drawn == [backward.placement(step) for step in reversed(steps)][::-1]
    assert all(mixer in names for placement in drawn for mixer, names in zip(placement, MIXERS, strict=True))
    assert drawn != [PlacementSampler(MIXERS, CONFIGS[name], seed=4).placement(step) for step in steps]


PRINT_PLACEMENTS = """
from tests.distillation.test_sampling import CONFIGS, MIXERS, PlacementSampler
print([PlacementSampler(MIXERS, config, seed=7).placement(s) for config in CONFIGS.values() for s in range(9)])
"""


def test_two_processes_with_one_seed_sample_the_same():
    printed = [
        subprocess.run(
            [sys.executable, "-c", PRINT_PLACEMENTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert b"gdn" in printed[0]


def test_named_placements_come_by_weight():
    named = ["safe", "turbo", "fast"]
    draw = sample_named(named, {"turbo": 2.0, "fast": 0.0}, seed=0)
    assert_drawn(frequencies(draw, 3000), {"safe": 1 / 3, "turbo": 2 / 3}, 3000)
    again = sample_named(reversed(named), {"turbo": 2.0, "fast": 0.0}, seed=0)
    assert [draw(step) for step in range(30)] == [again(step) for step in range(30)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"sampling": "weighted", "weights": {"mamba": 1.0}},
            "weights name mamba; the supernet holds fa, gdn",
        ),
        ({"sampling": "weighted", "weights": {"fa": 0.0, "swa": 0.0}}, "mixers of layer 1 all have weight 0"),
        ({"sampling": "layouts", "layouts": (LayoutConfig(placement=("fa",)),)}, "1 mixers for 4 layers"),
        ({"sampling": "layouts", "layouts": (LayoutConfig(placement=("fa",) * 4),)}, "layer 3 holds no 'fa'"),
    ],
)
def test_refuses_what_the_layers_do_not_hold(config, message):
    with pytest.raises(UserError, match=message):
        PlacementSampler(MIXERS, SupernetConfig(**config), seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "weighted"}, "sampling=weighted is not allowed; give weighted together with weights"),
        ({"weights": {"fa": 1.0}}, "give weighted together with weights"),
        ({"sampling": "layouts"}, "give layouts together with layouts"),
        ({"sampling": "weighted", "weights": {"rwkv": 1.0}}, "weights=rwkv"),
        ({"sampling": "weighted", "weights": {"fa": -1.0}}, "weights.fa=-1.0"),
        ({"mixer_matching": float("nan")}, "mixer_matching=nan"),
        ({"probe_every": 0}, "probe_every=0"),
        ({"random_probes": -1}, "random_probes=-1"),
        ({"loss": "cross_entropy"}, "loss=cross_entropy"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(UserError, match=message):
        SupernetConfig(**fields)


def test_refuses_weights_of_placements_that_are_not_there():
    with pytest.raises(UserError, match="placement_weights name fast; placements: safe"):
        sample_named(["safe"], {"fast": 1.0}, seed=0)
    with pytest.raises(UserError, match="the named placements all have weight 0"):
        sample_named(["safe"], {"safe": 0.0}, seed=0)
