"""Caches under generation: beams, repeats, crops, assisted decoding. What cannot be exact must refuse."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from apriel_assets.hybrid.attention_caches import GrowingLayer, WindowLayer
from tests.hybrid.test_mixers_with_cache import OPTIONS, PLACEMENTS, RECURRENT, TOLERANCE, hybrid
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

NUM_NEW = 12
EVERY_PLACEMENT = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)


@EVERY_PLACEMENT
@pytest.mark.parametrize("prompt", [1, 5, 20])
@torch.no_grad()
def test_length_is_right_wherever_the_recurrent_layers_are(placement, prompt):
    model, ids = hybrid(placement), random_ids(2, prompt)
    cache = model.make_cache()
    assert cache.get_seq_length() == 0
    model(ids, past_key_values=cache)
    assert [cache.get_seq_length(layer) for layer in range(3)] == [prompt] * 3
    model(ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == prompt + 1
    cache.reset()
    torch.testing.assert_close(
        model(ids, past_key_values=model.make_cache()).logits, model(ids, use_cache=False).logits
    )


@EVERY_PLACEMENT
@torch.no_grad()
def test_greedy_generation_equals_recomputing_from_the_start(placement):
    model, ids = hybrid(placement), random_ids(2, 10)
    expected = ids
    for _ in range(NUM_NEW):
        following = model(expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    generated = model.generate(ids, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, expected)


@EVERY_PLACEMENT
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_generation_with_a_cache_equals_generation_without(placement, settings):
    model, ids = hybrid(placement), random_ids(2, 9)
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])

    def generate(use_cache):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=NUM_NEW,
                use_cache=use_cache,
                eos_token_id=None,
                **settings,
            )

    assert torch.equal(generate(True), generate(False))


@EVERY_PLACEMENT
@pytest.mark.parametrize("method", ["reorder_cache", "batch_select_indices"])
@torch.no_grad()
def test_rows_can_be_reordered(placement, method):
    model, ids, order = hybrid(placement), random_ids(3, 14), torch.tensor([2, 0])
    cache = model(ids[:, :11]).past_key_values
    getattr(cache, method)(order)
    logits = model(ids[order][:, 11:], past_key_values=cache).logits
    torch.testing.assert_close(
        logits, model(ids, use_cache=False).logits[order][:, 11:], **TOLERANCE[torch.float32]
    )


@EVERY_PLACEMENT
@torch.no_grad()
def test_rows_can_be_repeated(placement):
    model, ids = hybrid(placement), random_ids(2, 14)
    cache = model(ids[:, :11]).past_key_values
    cache.batch_repeat_interleave(2)
    ids = ids.repeat_interleave(2, dim=0)
    logits = model(ids[:, 11:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, 11:], **TOLERANCE[torch.float32])


@pytest.mark.parametrize("placement", [PLACEMENTS["fa"], PLACEMENTS["swa"], ("swa", "fa", "swa")])
@pytest.mark.parametrize("prompt", [4, 7, 8, 20])
@torch.no_grad()
def test_crop_of_attention_layers_is_exact(placement, prompt):
    model, ids = hybrid(placement), random_ids(1, prompt + 6)
    cache = model(ids[:, :prompt]).past_key_values
    cache.activate_past_recording()
    model(random_ids(1, 5, seed=4), past_key_values=cache)  # a draft that is not accepted
    cache.crop(-5)
    assert cache.get_seq_length() == prompt
    logits = model(ids[:, prompt:], past_key_values=cache).logits
    torch.testing.assert_close(
        logits, model(ids, use_cache=False).logits[:, prompt:], **TOLERANCE[torch.float32]
    )


@pytest.mark.parametrize("placement", [p for p in PLACEMENTS.values() if set(p) & set(RECURRENT)])
@torch.no_grad()
def test_crop_of_recurrent_layers_refuses_and_leaves_every_layer_as_it_was(placement):
    model, ids = hybrid(placement), random_ids(1, 14)
    cache = model(ids[:, :6]).past_key_values
    assert not cache.is_croppable
    with pytest.raises(RuntimeError, match="cannot be cropped by 2 tokens"):
        cache.crop(-2)
    with pytest.raises(RuntimeError, match="assisted decoding"):
        cache.activate_past_recording()
    logits = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, 6:], **TOLERANCE[torch.float32])


@torch.no_grad()
def test_crop_beyond_the_recorded_past_of_a_window_refuses():
    model, ids = hybrid(("swa", "fa", "fa")), random_ids(1, 20)
    cache = model(ids).past_key_values
    with pytest.raises(RuntimeError, match="window of 8"):
        cache.crop(-1)
    assert [cache.get_seq_length(layer) for layer in range(3)] == [20] * 3
    with pytest.raises(ValueError, match="at most 20"):
        cache.crop(-21)
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(5)
    recorded = WindowLayer(sliding_window=4)
    recorded.update(torch.zeros(1, 1, 10, 2), torch.zeros(1, 1, 10, 2))
    recorded.activate_past_recording()
    recorded.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(RuntimeError, match="cannot take back 3 tokens"):
        recorded.crop(-3)


@pytest.mark.parametrize("placement", [PLACEMENTS["fa"], PLACEMENTS["swa"]])
def test_assisted_decoding_of_attention_layers_gives_the_greedy_text(placement):
    model, ids = hybrid(placement), random_ids(1, 12)
    settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "eos_token_id": None}
    assisted = model.generate(ids, assistant_model=hybrid(("swa", "fa", "fa"), "llama_tied"), **settings)
    assert torch.equal(assisted, model.generate(ids, **settings))


def test_assisted_decoding_of_recurrent_layers_refuses():
    model, plain, ids = hybrid(PLACEMENTS["mamba"]), tiny_teacher(), random_ids(1, 12)
    with pytest.raises(RuntimeError, match="recurrent mixers"):
        model.generate(ids, assistant_model=plain, max_new_tokens=4)
    with pytest.raises(RuntimeError, match="recurrent mixers"):
        plain.generate(ids, assistant_model=model, max_new_tokens=4)


@torch.no_grad()
def test_a_cache_serves_only_its_placement():
    model, ids = hybrid(PLACEMENTS["recurrent first"]), random_ids(1, 6)
    with pytest.raises(ValueError, match="DynamicCache holds attention layers only"):
        model(ids, past_key_values=DynamicCache())
    model.convert([2], "swa", options=OPTIONS, keep=True)
    cache = model(ids).past_key_values
    model.set_placement(("mamba", "swa", "fa"))
    with pytest.raises(ValueError, match="filled under placement mamba swa swa"):
        model(ids, past_key_values=cache)


def _states(num_tokens, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, num_tokens, 4, generator=generator) for _ in range(2)]


def test_growing_layer_holds_what_transformers_layer_holds_through_every_operation():
    grown, plain = GrowingLayer(), DynamicLayer()
    operations = [
        lambda layer: layer.update(*_states(5, 0)),
        lambda layer: layer.update(*_states(1, 1)),
        lambda layer: layer.crop(-3),
        lambda layer: layer.update(*_states(1, 2)),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.update(*_states(1, 3)),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.update(*_states(90, 4, batch=4)),  # more than there is room for
        lambda layer: layer.batch_select_indices(torch.tensor([2, 3])),
        lambda layer: layer.update(*_states(1, 5)),
        lambda layer: layer.reset(),
        lambda layer: layer.update(*_states(3, 6)),
    ]
    for operation in operations:
        operation(grown)
        operation(plain)
        assert grown.get_seq_length() == plain.get_seq_length()
        if plain.get_seq_length():
            assert torch.equal(grown.keys, plain.keys)
            assert torch.equal(grown.values, plain.values)


def test_growing_layer_appends_without_copying_what_it_holds():
    layer = GrowingLayer()
    layer.update(*_states(8, 0))
    before = layer.keys
    layer.update(*_states(1, 1))
    assert layer.keys.data_ptr() == before.data_ptr()
    assert layer.keys.shape[-2] == 9
    kept = layer.keys
    layer.reorder_cache(torch.tensor([0, 1]))  # other rows, other memory: what was held must stay as it was
    layer.update(*_states(1, 2))
    assert torch.equal(kept, torch.cat([before, _states(1, 1)[0]], dim=-2))


@EVERY_PLACEMENT
@torch.no_grad()
def test_lengthened_cache_counts_its_tokens_and_decodes_on(placement):
    model, ids = hybrid(placement), random_ids(2, 7)
    cache = model(ids, past_key_values=model.make_cache()).past_key_values
    cache.lengthen(40)
    assert [cache.get_seq_length(layer) for layer in range(3)] == [47] * 3
    logits = model(ids[:, :1], past_key_values=cache, position_ids=torch.full((2, 1), 47)).logits
    assert logits.isfinite().all()
    assert cache.get_seq_length() == 48
    for layer, kind in zip(cache.layers, cache.layout, strict=True):
        if kind == "fa":
            assert layer.keys.shape[-2] == 48
        if kind == "swa":
            assert layer.keys.shape[-2] == layer.sliding_window - 1
