"""Continuous batching: what a request gets does not depend on who else is there; slots are given back."""

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.decode_runner_projections import weights_in_place
from apriel_assets.evaluation.generation import Decoding
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.batching import ContinuousBatch, Request
from apriel_assets.serving.sampling import Sampling
from tests.hybrid.tiny_teachers import random_ids

NAMES = ("safe", "turbo", "fast")
PROMPTS = [random_ids(size, seed=size).tolist() for size in (3, 17, 9, 1, 12)]


@pytest.fixture(scope="module", params=NAMES)
def model(request, release):
    return HybridForCausalLM.from_pretrained(release / "engines" / request.param).eval()


def alone(model, prompt, num_tokens):
    ids, found = torch.tensor([prompt]), []
    with torch.inference_mode():
        decoding = Decoding(model, ids, torch.ones_like(ids))
        for _ in range(num_tokens):
            found.append(int(decoding.logits.argmax()))
            decoding.step(torch.tensor(found[-1:]))
    return found


def request(number, num_tokens=8, **options):
    sampling = Sampling(max_new_tokens=num_tokens, **options)
    return Request(id=number, prompt=tuple(PROMPTS[number]), sampling=sampling)


def run(batch, arrivals):
    """Submit requests at given steps, and run until nothing is left; return tokens and endings by request."""
    tokens, endings, step = {}, {}, 0
    while arrivals or not batch.is_idle:
        for own in arrivals.pop(step, []):
            batch.submit(own)
        for event in batch.step():
            tokens.setdefault(event.id, []).append(event.token)
            if event.finish:
                endings[event.id] = event.finish
        step += 1
        assert step < 500
    return tokens, endings


def test_requests_that_come_and_go_get_the_tokens_that_they_get_alone(model):
    batch = ContinuousBatch(model, num_slots=2, capacity=64)
    arrivals = {0: [request(0), request(1, 3)], 2: [request(2)], 3: [request(3, 12), request(4)]}
    tokens, endings = run(batch, arrivals)
    lengths = {0: 8, 1: 3, 2: 8, 3: 12, 4: 8}
    assert tokens == {number: alone(model, PROMPTS[number], length) for number, length in lengths.items()}
    assert set(endings.values()) == {"length"}
    assert (batch.num_running, batch.num_waiting) == (0, 0)


def test_a_slot_is_used_again_and_again_without_running_out_of_room(model):
    batch = ContinuousBatch(model, num_slots=3, capacity=24)
    for _ in range(6):
        tokens, _ = run(batch, {0: [request(2, 15)]})
        assert tokens[2] == alone(model, PROMPTS[2], 15)


def test_stop_tokens_and_cancelling(model):
    expected = alone(model, PROMPTS[0], 8)
    stopping = Request(
        id=0, prompt=tuple(PROMPTS[0]), sampling=Sampling(max_new_tokens=8), stop_ids=frozenset([expected[2]])
    )
    batch = ContinuousBatch(model, num_slots=1, capacity=64)
    tokens, endings = run(batch, {0: [stopping]})
    assert (tokens[0], endings[0]) == (expected[: expected.index(expected[2]) + 1], "stop")
    batch.submit(request(1))
    batch.submit(request(2))
    batch.step()
    batch.cancel(1)
    batch.cancel(2)
    batch.cancel(77)
    assert batch.is_idle
    assert batch.step() == []


def test_samples_depend_on_the_seed_and_not_on_the_company(model):
    own = request(0, 10, temperature=1.0, seed=3)
    tokens, _ = run(ContinuousBatch(model, num_slots=1, capacity=64), {0: [own]})
    company = [request(1, 10), request(2, 10, temperature=2.0, top_p=0.5, seed=9), request(3, 4)]
    together, _ = run(ContinuousBatch(model, num_slots=4, capacity=64), {0: company, 1: [own]})
    assert together[0] == tokens[0]
    other, _ = run(
        ContinuousBatch(model, num_slots=1, capacity=64), {0: [request(0, 10, temperature=1.0, seed=4)]}
    )
    assert other[0] != tokens[0]


@pytest.mark.parametrize("prompt", [(), tuple([5] * 60)])
def test_what_does_not_fit_is_refused(model, prompt):
    batch = ContinuousBatch(model, num_slots=1, capacity=64)
    with pytest.raises(UserError, match="at least 1 and at most 64"):
        batch.submit(Request(id=0, prompt=prompt, sampling=Sampling(max_new_tokens=8)))


def test_weights_left_in_place_stay_where_they_are_and_give_the_same(model, release):
    fused = DecodeRunner(model, batch_size=2, capacity=32)
    own = HybridForCausalLM.from_pretrained(release / "engines" / "turbo").eval()
    before = {name: parameter.data_ptr() for name, parameter in own.named_parameters()}
    with weights_in_place():
        apart = DecodeRunner(own, batch_size=2, capacity=32)
    assert {name: parameter.data_ptr() for name, parameter in own.named_parameters()} == before
    if model.placement == own.placement:
        one, other = (runner.generate(PROMPTS[:2], 8) for runner in (fused, apart))
        assert [row.token_ids for row in one] == [row.token_ids for row in other]
