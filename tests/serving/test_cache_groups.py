"""vLLM's grouping of caches: counts and bytes by hand, what cannot matter, what is refused."""

import random
from dataclasses import replace

import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape
from apriel_assets.serving.cache_groups import cache_groups

SHAPE = ModelShape(
    hidden_size=5120, num_heads=32, num_kv_heads=8, head_size=128, intermediate_size=14336, vocab_size=131072,
    window=4096,
)  # fmt: skip
TOKEN = 2 * 8 * 128 * 2  # bytes of keys and values in one layer
DELTA = 32 * 128 * 128 * 4 + 3 * 32 * 128 * 3 * 2  # fp32 state, three tokens of q, k and v


def test_full_attention_alone_is_one_group_and_wastes_what_is_left_of_a_block():
    groups = cache_groups(SHAPE, ["fa"] * 48)
    assert (groups.num_groups, groups.layers_per_group, groups.padding_layers) == (1, 48, 0)
    assert groups.request_bytes(100) == 48 * 112 * TOKEN
    assert groups.wasted_share(100) == pytest.approx(12 / 112)
    assert groups.wasted_share(112) == 0


def test_a_state_asks_for_larger_blocks_and_takes_one():
    groups = cache_groups(SHAPE, ["fa"] * 20 + ["gdn"] * 40)
    assert groups.block_tokens == 544  # 34 * 16: the fewest whose keys and values hold a state
    assert 528 * TOKEN < DELTA < groups.page_bytes == 544 * TOKEN
    assert (groups.num_groups, groups.layers_per_group, groups.padding_layers) == (3, 20, 0)
    assert groups.request_bytes(5440) == (10 + 2) * 20 * groups.page_bytes
    assert groups.needed_bytes(5440) == 20 * 5440 * TOKEN + 40 * DELTA


def test_gdn_and_kda_keep_the_same_and_share_a_group():
    both = cache_groups(SHAPE, ["fa"] * 10 + ["gdn"] * 5 + ["kda"] * 5)
    assert both == cache_groups(SHAPE, ["fa"] * 10 + ["gdn"] * 10)
    assert both.num_groups == 2


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"fa": 1, "gdn": 47}, (48, 1, 0)),  # a kind with a single layer: as many groups as layers
        ({"fa": 12, "swa": 13}, (2, 13, 1)),  # alike: filled up to the larger
        ({"fa": 12, "swa": 18}, (3, 12, 6)),  # 1.5 times: no more
        ({"fa": 12, "swa": 26, "kda": 6, "gdn": 4}, (6, 10, 12)),  # a published placement
    ],
)
def test_groups_by_hand(counts, expected):
    groups = cache_groups(SHAPE, [mixer for mixer, count in counts.items() for _ in range(count)])
    assert (groups.num_groups, groups.layers_per_group, groups.padding_layers) == expected


def test_a_window_takes_no_more_than_it_sees():
    groups = cache_groups(replace(SHAPE, window=64), ["swa"] * 4)
    assert groups.request_bytes(10_000) == 4 * 5 * 16 * TOKEN  # four blocks, and one that it may begin in
    assert groups.request_bytes(20) == 4 * 2 * 16 * TOKEN


def test_without_attention_a_block_is_the_largest_state():
    groups = cache_groups(SHAPE, ["gdn"] * 2 + ["mamba"] * 2)
    assert groups.page_bytes == DELTA > groups.needed_bytes(1) / 4
    assert groups.request_bytes(1) == groups.request_bytes(100_000) == 4 * DELTA


@pytest.mark.parametrize("context", [1, 777, 32_768])
def test_order_does_not_matter_and_memory_covers_the_need(context):
    generator = random.Random(0)
    for _ in range(50):
        placement = generator.choices(("fa", "swa", "gdn", "kda", "mamba"), k=generator.randint(1, 50))
        groups = cache_groups(SHAPE, placement)
        assert 0 <= groups.wasted_share(context) < 1
        assert groups.padding_layers >= 0
        assert cache_groups(SHAPE, sorted(placement)) == groups


@pytest.mark.parametrize(("placement", "named"), [([], "no layers"), (["fa", "rwkv"], "'rwkv'")])
def test_what_cannot_be_grouped_is_named(placement, named):
    with pytest.raises(UserError, match=named):
        cache_groups(SHAPE, placement)
