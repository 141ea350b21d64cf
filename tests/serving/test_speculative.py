"""Speculative decoding: greedy token for token, samples in full attention's own distribution, states taken back."""

import math

import numpy as np
import pytest
import torch

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.errors import UserError
from apriel_assets.evaluation.generation import Decoding
from apriel_assets.hybrid.caches import HybridCache
from apriel_assets.hybrid.matryoshka import make_matryoshka
from apriel_assets.serving import speculative
from apriel_assets.serving.sampling import Sampling, probabilities
from apriel_assets.serving.speculative import SpeculativeDecoder, accept
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

ALL = ("fa", "swa", "gdn", "kda", "mamba")
DRAFTS = {
    "gdn": ("gdn", "gdn", "gdn"), "kda": ("kda", "kda", "kda"), "mamba": ("mamba", "mamba", "mamba"),
    "swa": ("swa", "swa", "swa"), "mixed": ("gdn", "fa", "swa"), "itself": ("fa", "fa", "fa"),
}  # fmt: skip


def make_model(kind="llama", noise=0.0, **sizes):
    supernet = build_supernet(tiny_teacher(kind, **sizes), (ALL,) * 3, options={"swa": {"window": 4}}).eval()
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if noise and ".mixers." in name and ".mixers.fa." not in name:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=noise
                )
    return make_matryoshka(supernet, DRAFTS)


def greedy(model, prompt, num_tokens):
    """Full attention's own tokens."""
    model.set_placement("safe")
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        decoding, found = Decoding(model, ids, torch.ones_like(ids)), []
        for _ in range(num_tokens):
            found.append(int(decoding.logits.argmax()))
            decoding.step(torch.tensor(found[-1:]))
    return found


def decoded(model, draft, prompt, sampling, **options):
    rounds = list(SpeculativeDecoder(model, draft, **options).rounds(prompt, sampling))
    return [token for own in rounds for token in own.tokens], rounds


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("num_draft_tokens", [1, 3, 5])
def test_greedy_is_full_attentions_token_for_token(draft, num_draft_tokens):
    model, prompt = make_model(), random_ids(11).tolist()
    expected = greedy(model, prompt, 24)
    found, rounds = decoded(
        model, draft, prompt, Sampling(max_new_tokens=24), num_draft_tokens=num_draft_tokens
    )
    assert found == expected
    if draft == "itself":  # everything stands
        assert all(len(own.tokens) == own.num_drafted + 1 for own in rounds)
    elif num_draft_tokens > 1:  # something was taken back
        assert any(len(own.tokens) < own.num_drafted for own in rounds)


@pytest.mark.parametrize("kind", ["mistral_windowed", "qwen3"])
def test_greedy_with_other_attention(kind):
    model, prompt = make_model(kind), random_ids(11).tolist()
    assert decoded(model, "mixed", prompt, Sampling(max_new_tokens=20))[0] == greedy(model, prompt, 20)


def test_a_draft_that_is_not_taken_back_changes_acceptance_and_nothing_else(monkeypatch):
    """The drafting state decides how much is accepted, never what comes out."""
    model, prompt = make_model(), random_ids(11).tolist()
    expected, right = decoded(model, "gdn", prompt, Sampling(max_new_tokens=24))
    monkeypatch.setattr(HybridCache, "restore", lambda self, snapshot: None)
    found, wrong = decoded(model, "gdn", prompt, Sampling(max_new_tokens=24))
    assert found == expected == greedy(model, prompt, 24)
    assert [own.tokens for own in wrong] != [own.tokens for own in right]


def test_states_taken_back_are_those_of_reading_the_text_anew():
    model = make_model(noise=0.3)
    text, more = random_ids(7).tolist(), random_ids(5, seed=3).tolist()
    for name in DRAFTS:
        path = speculative._Path(model, DRAFTS[name])
        with torch.inference_mode():
            path.read(text)
            before = path.cache.snapshot()
            path.read(more)
            path.cache.restore(before)
            assert path.cache.get_seq_length() == len(text), name
            again = path.read([9, 10])
            anew = speculative._Path(model, DRAFTS[name])
            anew.read(text)
            expected = anew.read([9, 10])
        torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def chi_squared_p(observed, expected):
    """Upper tail of Pearson's statistic, cells with fewer than 5 expected joined (Wilson-Hilferty)."""
    order = np.argsort(expected)
    cells, o, e = [], 0.0, 0.0
    for index in order:
        o, e = o + observed[index], e + expected[index]
        if e >= 5:
            cells.append((o, e))
            o = e = 0.0
    if e:
        last_o, last_e = cells.pop()
        cells.append((last_o + o, last_e + e))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    freedom = len(cells) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def verdict(rule, num_drafts=2, count=40_000):
    """p value of the joint distribution of the first tokens that a rule lets out, against the target's own."""
    generator = torch.Generator().manual_seed(0)
    vocab = 4
    target = torch.rand(num_drafts + 1, vocab, generator=generator).pow(2)
    target /= target.sum(-1, keepdim=True)
    draft = torch.rand(num_drafts, vocab, generator=generator).pow(2)
    draft /= draft.sum(-1, keepdim=True)
    drafted = torch.stack([torch.multinomial(row, count, True, generator=generator) for row in draft], dim=1)
    uniforms = torch.rand(count, num_drafts + 1, generator=generator, dtype=torch.float64)
    num, following = rule(target.expand(count, -1, -1), draft.expand(count, -1, -1), drafted, uniforms)
    # Each position's distribution is its own here, so the first token alone and the pair given one accepted tell.
    first = torch.where(num > 0, drafted[:, 0], following)
    observed = torch.bincount(first, minlength=vocab).numpy()
    ps = [chi_squared_p(observed, target[0].numpy() * count)]
    second = torch.where(num > 1, drafted[:, 1], following)[num > 0]
    ps.append(chi_squared_p(torch.bincount(second, minlength=vocab).numpy(), target[1].numpy() * len(second)))
    return min(ps)


def test_the_acceptance_rule_keeps_the_targets_distribution():
    assert verdict(accept) > 0.001


@pytest.mark.parametrize("broken", ["everything", "no residual", "ratio turned round"])
def test_a_broken_acceptance_rule_is_found(broken):
    def rule(target, draft, drafted, uniforms):
        if broken == "everything":
            num, following = accept(target, draft, drafted, uniforms)
            return torch.full_like(num, drafted.shape[1]), following
        if broken == "no residual":
            num, _ = accept(target, draft, drafted, uniforms)
            rows = torch.arange(len(num))
            return num, speculative.draw(target[rows, num], uniforms[:, -1])
        return accept(torch.cat([draft, target[:, -1:]], dim=1), target[:, :-1], drafted, uniforms)

    assert verdict(rule) < 1e-6


def pair_probabilities(model, prompt, vocab, sampling):
    """Full attention's exact distribution of the next two tokens, `[vocab * vocab]`."""
    model.set_placement("safe")
    with torch.inference_mode():
        first = model(torch.tensor([prompt])).logits[:, -1]
        after = torch.tensor([[*prompt, token] for token in range(vocab)])
        second = model(after).logits[:, -1]
    one = probabilities(first, [sampling])[0]
    return (one[:, None] * probabilities(second, [sampling] * vocab)).flatten().double().numpy()


def sampled_pairs(model, prompt, vocab, count, sampling):
    observed = np.zeros(vocab * vocab)
    decoder = SpeculativeDecoder(model, "mixed", num_draft_tokens=2)
    for seed in range(count):
        own = Sampling(max_new_tokens=3, temperature=sampling.temperature, top_p=sampling.top_p, seed=seed)
        tokens = [token for each in decoder.rounds(prompt, own) for token in each.tokens]
        observed[tokens[0] * vocab + tokens[1]] += 1
    return observed


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_new_tokens=3, temperature=0.8), Sampling(max_new_tokens=3, temperature=1.5, top_p=0.8)],
)
def test_samples_are_distributed_as_full_attentions(sampling, monkeypatch):
    vocab, prompt, count = 8, [3, 1, 4, 1, 5], 300
    model = make_model(vocab_size=vocab)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # far from uniform
    expected = pair_probabilities(model, prompt, vocab, sampling) * count
    assert chi_squared_p(sampled_pairs(model, prompt, vocab, count, sampling), expected) > 0.001

    def everything(target, draft, drafted, uniforms):
        num, following = accept(target, draft, drafted, uniforms)
        return torch.full_like(num, drafted.shape[1]), following

    monkeypatch.setattr(speculative, "accept", everything)
    assert chi_squared_p(sampled_pairs(model, prompt, vocab, count, sampling), expected) < 1e-6


def test_stop_tokens_end_the_text_and_the_placement_is_given_back():
    model, prompt = make_model(), random_ids(11).tolist()
    expected = greedy(model, prompt, 24)
    stop = expected[7]
    model.set_placement("mixed")
    decoder = SpeculativeDecoder(model, "gdn", num_draft_tokens=3)
    found = [
        token for own in decoder.rounds(prompt, Sampling(max_new_tokens=24), [stop]) for token in own.tokens
    ]
    assert found == expected[: expected.index(stop) + 1]
    assert model.placement == DRAFTS["mixed"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda model: SpeculativeDecoder(model, "slow"), "no placement 'slow'; named: safe, gdn"),
        (lambda model: SpeculativeDecoder(model, "gdn", num_draft_tokens=0), "at least 1"),
        (lambda model: SpeculativeDecoder(model, ("fa", "fa")), "2 mixers for 3 layers"),
        (
            lambda model: list(
                SpeculativeDecoder(model, "gdn").rounds([5] * 250, Sampling(max_new_tokens=9))
            ),
            "256 positions",
        ),
        (
            lambda model: list(SpeculativeDecoder(model, "gdn").rounds([], Sampling(max_new_tokens=9))),
            "0 tokens",
        ),
    ],
)
def test_bad_input_is_refused(act, message):
    with pytest.raises(UserError, match=message):
        act(make_model())


def test_a_pruned_mixer_is_refused():
    model = make_model()
    model.config.placements = {}
    model.set_placement(DRAFTS["gdn"])
    model.prune()
    with pytest.raises(UserError, match="holds no 'fa'"):
        SpeculativeDecoder(model, DRAFTS["gdn"])
