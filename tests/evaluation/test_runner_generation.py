"""The decode runner writes what the step-by-step loop writes, and only where it can."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from apriel_assets.evaluation import runner_generation
from apriel_assets.evaluation.generation import generate
from apriel_assets.hybrid.config import MixerOptions, SlidingWindowConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import tiny_teacher
from tests.scoring.tiny_hybrid import make_hybrid


class Tokenizer:
    """Reads letters as tokens."""

    pad_token_id, eos_token_id = 0, 2

    def __call__(self, prompts):
        ids = [[3 + ord(letter) % 50 for letter in prompt] for prompt in prompts]
        return SimpleNamespace(input_ids=ids)

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(map(str, row)) for row in rows]


PROMPTS = ["a", "hybrid", "of", "many mixers", "and one"]


def make_model():
    model = make_hybrid(noise=0.3)
    model.convert([1], "swa", options=MixerOptions(swa=SlidingWindowConfig(window=4)))
    model.convert([2], "gdn")
    return model.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_writes_what_the_loop_writes(monkeypatch, temperature):
    model, options = (
        make_model(),
        {"max_new_tokens": 9, "temperature": temperature, "samples": 2, "seed": 3, "batch_size": 4},
    )
    expected = generate(model, Tokenizer(), PROMPTS, **options)
    used = []
    complete = runner_generation.complete
    monkeypatch.setattr(runner_generation, "applies", lambda *_: True)
    monkeypatch.setattr(runner_generation, "complete", lambda *a: used.append(len(a[1])) or complete(*a))
    found = generate(model, Tokenizer(), PROMPTS, **options)
    assert used == [4, 4, 2]  # the last batch is not full
    for mine, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert (mine.token_ids, mine.text, mine.finished) == (theirs.token_ids, theirs.text, theirs.finished)
        assert mine.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
    assert len({tuple(one.token_ids) for one in chain(*found)}) > len(PROMPTS) * (temperature > 0)


def test_runs_on_a_gpu_alone_and_where_its_log_probs_are_what_is_asked():
    model = make_model()
    assert not runner_generation.applies(model, 20, 0)

    class OnGpu:
        device = torch.device("cuda")

        def __init__(self, own):
            self.__dict__.update(own.__dict__)
            self.own = own

        def __getattr__(self, name):
            return getattr(self.own, name)

    assert runner_generation.applies(OnGpu(model), 20, 1)
    assert not runner_generation.applies(OnGpu(model), 20, 0.7)
    assert not runner_generation.applies(OnGpu(model), 10_000, 0)  # more than the model has positions
    assert not runner_generation.applies(OnGpu(tiny_teacher()), 20, 0)
    assert not isinstance(tiny_teacher(), HybridForCausalLM)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_on_a_gpu_it_writes_what_the_models_own_forward_says(temperature):
    model, tokenizer = make_model().cuda(), Tokenizer()
    options = {"max_new_tokens": 9, "temperature": temperature, "samples": 2, "seed": 3, "batch_size": 4}
    found = generate(model, tokenizer, PROMPTS, **options)
    for prompt, completions in zip(tokenizer(PROMPTS).input_ids, found, strict=True):
        for mine in completions:
            ids = torch.tensor([[*prompt, *mine.token_ids]], device="cuda")
            with torch.no_grad():
                log_probs = (
                    model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                )
            chosen = log_probs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            # Attention in tf32, as in test_decode_runner_on_gpu; where two tokens are nearly as likely, either may be
            # taken.
            error = torch.tensor(mine.log_probs) - chosen.cpu()
            assert error.norm() < 5e-3 * chosen.norm().cpu()
            if temperature == 0:
                assert (log_probs.max(1).values - chosen).max() < 1e-2
