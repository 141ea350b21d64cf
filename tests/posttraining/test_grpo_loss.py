"""GRPO's loss: hand arithmetic, the formula token by token, exact expectations, and TRL's on the same tensors."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from apriel_assets.posttraining.config import GrpoConfig
from apriel_assets.posttraining.grpo_loss import (
    Sampled,
    group_advantages,
    grpo_loss,
    kl_estimate,
    token_weights,
)

CONFIG = GrpoConfig(clip_low=0.2, clip_high=0.3, kl_weight=0.1)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    plain, informative = group_advantages(rewards, "none")
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [-0.25, -0.25, -0.25, 0.75]]
    assert informative.all()
    scaled, _ = group_advantages(rewards, "std")
    # Deviations of samples: sqrt(1 / 3) and sqrt(1 / 4).
    torch.testing.assert_close(scaled[0], plain[0] * math.sqrt(3))
    torch.testing.assert_close(scaled[1], plain[1] * 2)


def test_advantages_are_relative_to_the_group():
    rewards = torch.rand(5, 6, dtype=torch.float64)
    advantages, _ = group_advantages(rewards, "std")
    torch.testing.assert_close(advantages.sum(-1), torch.zeros(5, dtype=torch.float64))
    again, _ = group_advantages(3 * rewards + 7, "std")  # neither where rewards start nor their unit matters
    torch.testing.assert_close(again, advantages)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_of_one_reward_has_no_advantages(scale):
    rewards = torch.tensor([[1.0, 1.0], [0.1 + 0.2, 0.1 + 0.2], [1.0, 0.0]], dtype=torch.float64)
    advantages, informative = group_advantages(rewards, scale)
    assert informative.tolist() == [False, False, True]
    assert not advantages[:2].any()
    assert advantages.isfinite().all()


def test_token_weights_by_hand():
    lengths = torch.tensor([1, 3])
    assert token_weights(lengths, "token").tolist() == [0.25, 0.25]
    assert token_weights(lengths, "sequence").tolist() == pytest.approx([1 / 2, 1 / 6])


def drawn(num_tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def values():
        return torch.randn(num_tokens, generator=generator, dtype=torch.float64)

    log_probs = (values() - 2).requires_grad_()
    old, reference = log_probs.detach() + 0.4 * values(), log_probs.detach() + 0.4 * values()
    weights = values().abs()
    return log_probs, Sampled(old, values(), weights / weights.sum(), reference)


def written(log_probs, sampled, config):
    """The formula of the module's docstring, a token at a time."""
    total = torch.zeros((), dtype=log_probs.dtype)
    clipped = 0.0
    for now, old, gain, weight, start in zip(
        log_probs,
        sampled.log_probs,
        sampled.advantages,
        sampled.weights,
        sampled.reference_log_probs,
        strict=True,
    ):
        rho = torch.exp(now) / torch.exp(old)
        kept = min(max(rho, 1 - config.clip_low), 1 + config.clip_high)
        surrogate = min(rho * gain, kept * gain)
        clipped += float(weight) * bool(surrogate != rho * gain)
        likelier = torch.exp(start) / torch.exp(now)
        total = (
            total
            - weight * surrogate
            + config.kl_weight * weight * rho * (likelier - torch.log(likelier) - 1)
        )
    return total, clipped


@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_loss_and_gradient_are_the_formula_s(kl_weight):
    config = replace(CONFIG, kl_weight=kl_weight)
    log_probs, sampled = drawn()
    loss, figures = grpo_loss(log_probs, sampled, config)
    expected, clipped = written(log_probs, sampled, config)
    torch.testing.assert_close(loss, expected)
    assert 0 < clipped < 1
    assert float(figures.clipped_share) == pytest.approx(clipped)
    (ours,) = torch.autograd.grad(loss, log_probs)
    (theirs,) = torch.autograd.grad(expected, log_probs)
    torch.testing.assert_close(ours, theirs)


def test_parts_of_a_batch_add_up():
    log_probs, sampled = drawn()
    whole, _ = grpo_loss(log_probs, sampled, CONFIG)
    fields = ("log_probs", "advantages", "weights", "reference_log_probs")
    parts = [
        grpo_loss(log_probs[at], Sampled(*(getattr(sampled, own)[at] for own in fields)), CONFIG)[0]
        for at in (slice(0, 13), slice(13, 40))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_without_a_start_there_is_no_kl():
    log_probs, sampled = drawn()
    loss, figures = grpo_loss(log_probs, replace(sampled, reference_log_probs=None), CONFIG)
    expected, _ = written(log_probs, sampled, replace(CONFIG, kl_weight=0.0))
    torch.testing.assert_close(loss, expected)
    assert figures.kl_nats is None


def policies(seed=3, vocab=7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(vocab, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_the_kl_estimate_is_right_on_average_and_never_negative():
    logits, reference = policies()
    log_probs = logits.log_softmax(-1)
    estimate = kl_estimate(log_probs, reference)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    torch.testing.assert_close((log_probs.exp() * estimate).sum(), exact)
    assert (estimate >= 0).all()


def test_the_kl_term_has_the_gradient_of_the_kl():
    """Expectation over every token of a small vocabulary, sampled by another policy: no sampling error."""
    logits, reference = policies()
    sampler = policies(seed=5)[0].detach().log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)

    def expected(advantages):
        sampled = Sampled(sampler, advantages, sampler.exp(), reference)
        return grpo_loss(log_probs, sampled, replace(CONFIG, kl_weight=1.0))[0]

    ours = expected(torch.zeros_like(sampler))
    torch.testing.assert_close(ours, exact)  # off policy, too
    torch.testing.assert_close(torch.autograd.grad(ours, logits, retain_graph=True)[0], wanted)
    # Without the ratio the estimate is as good and its gradient another one's: that of KL(reference || policy).
    alone = (log_probs.detach().exp() * kl_estimate(log_probs, reference)).sum()
    other = (reference.exp() * (reference - log_probs)).sum()
    (found,) = torch.autograd.grad(alone, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(other, logits)[0])
    assert not torch.allclose(found, wanted)


def test_on_a_bandit_the_mean_gradient_is_the_policy_gradient():
    """All groups of two pulls of three arms, each by its probability: (samples - 1) / samples of the true gradient."""
    logits = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64, requires_grad=True)
    pays = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    total = torch.zeros_like(logits)
    for one in range(3):
        for other in range(3):
            pulled = torch.tensor([one, other])
            advantages, _ = group_advantages(pays[pulled][None], "none")
            weights = token_weights(torch.tensor([1, 1]), "token").double()
            sampled = Sampled(log_probs[pulled].detach(), advantages[0], weights)
            loss, figures = grpo_loss(log_probs[pulled], sampled, CONFIG)
            assert figures.largest_ratio_error == 0
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            total += log_probs.detach()[pulled].sum().exp() * gradient
    (truth,) = torch.autograd.grad((log_probs.exp() * pays).sum(), logits)
    torch.testing.assert_close(total, -truth / 2)


@pytest.mark.parametrize(("level", "loss_type"), [("token", "bnpo"), ("sequence", "grpo")])
def test_the_loss_is_trl_s(level, loss_type):
    grpo_trainer = pytest.importorskip(
        "trl.trainer.grpo_trainer", reason="needs trl, which nothing else here does"
    )
    lengths = torch.tensor([3, 1, 5, 4])
    mask = torch.arange(5) < lengths[:, None]
    log_probs, drawn_tokens = drawn(int(lengths.sum()))
    advantages = torch.tensor([0.9, -0.4, 0.3, -0.8], dtype=torch.float64)
    weights = token_weights(lengths, level).double().repeat_interleave(lengths)
    sampled = replace(drawn_tokens, advantages=advantages.repeat_interleave(lengths), weights=weights)
    ours, _ = grpo_loss(log_probs, sampled, CONFIG)

    def spread(values):
        return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)

    trainer = grpo_trainer.GRPOTrainer.__new__(grpo_trainer.GRPOTrainer)
    vars(trainer).update(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", beta=CONFIG.kl_weight, loss_type=loss_type, epsilon_low=CONFIG.clip_low,
        epsilon_high=CONFIG.clip_high, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None), model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda values: values, reduce=lambda values, reduction: values),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        spread(log_probs),
        torch.zeros(mask.shape),
        None,
    )
    ids = torch.zeros(mask.shape, dtype=torch.long)
    theirs = trainer._compute_loss(
        None,
        {
            "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
            "completion_mask": mask.long(), "advantages": advantages,
            "old_per_token_logps": spread(sampled.log_probs),
            "ref_per_token_logps": spread(sampled.reference_log_probs),
        },
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, log_probs, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
