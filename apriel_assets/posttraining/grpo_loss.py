"""The loss of GRPO, on the log-probabilities of sampled tokens.

For a problem, G completions o_i with rewards r_i (a group); for a token of o_i, rho = pi(token) / pi_old(token):

    A_i   = r_i - mean(r)                 over std(r), unless scale is "none"
    L     = - w min(rho A_i, clip(rho, 1 - clip_low, 1 + clip_high) A_i) + kl_weight w rho K
    K     = pi_ref / pi - log(pi_ref / pi) - 1

w adds up to 1 over the batch: the same for every token ("token"), or for every completion ("sequence"), as first
published. K estimates KL(pi || pi_ref) without bias and is never negative. The factor rho before it corrects for tokens
that pi_old sampled, and gives it the gradient of KL(pi || pi_ref): K alone has that of KL(pi_ref || pi).

Source: Shao et al., "DeepSeekMath" (2024), GRPO; Yu et al., "DAPO" (2025), token level and two clips; Liu et al.,
"Understanding R1-Zero-Like Training" (2025), no division by the deviation; Schulman, "Approximating KL Divergence"
(2020), K; DeepSeek-AI, "DeepSeek-V3.2" (2025), the factor before it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from apriel_assets.posttraining.config import AdvantageScale, GrpoConfig, LossLevel


def group_advantages(rewards: Tensor, scale: AdvantageScale) -> tuple[Tensor, Tensor]:
    """Return advantages, and which groups have any.

    A group whose completions all have one reward says nothing: its advantages are 0, and dividing by its deviation
    would only blow up rounding.

    Args:
        rewards: `[groups, samples]`, floating point.
        scale: "std" divides by the group's standard deviation (of a sample: over samples - 1).

    Returns:
        advantages, `[groups, samples]`; informative, `[groups]`, bool.
    """
    informative = rewards.amax(-1) > rewards.amin(-1)
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if scale == "std":
        advantages = advantages / rewards.std(-1, keepdim=True)
    return advantages.where(informative[:, None], torch.zeros_like(advantages)), informative


def token_weights(lengths: Tensor, level: LossLevel) -> Tensor:
    """Return each completion's weight per token, `[completions]`: times lengths they add up to 1.

    Args:
        lengths: tokens of each completion of the whole batch, `[completions]`.
        level: "token" or "sequence".
    """
    if level == "token":
        return (1 / lengths.sum()).expand(len(lengths))
    return 1 / (lengths * len(lengths))


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sampled tokens of some completions, all `[tokens]`."""

    log_probs: Tensor  # when they were sampled, nats
    advantages: Tensor  # of their completions
    weights: Tensor  # that their losses have in the batch's
    reference_log_probs: Tensor | None = None  # under the start; None: no KL


@dataclass(frozen=True, slots=True)
class Figures:
    """What a loss was made of, all sums over tokens times their weights, but for the largest ratio."""

    clipped_share: Tensor  # of the tokens that the clip took the gradient from
    kl_nats: Tensor | None
    largest_ratio_error: Tensor  # |ratio - 1|


def grpo_loss(log_probs: Tensor, sampled: Sampled, config: GrpoConfig) -> tuple[Tensor, Figures]:
    """Return the loss of some completions, to be added up over the batch, and what it was made of.

    Args:
        log_probs: of the same tokens now, `[tokens]`, nats; gets gradients.
        sampled: what is held against them.
        config: clips and KL weight.
    """
    ratio = (log_probs - sampled.log_probs).exp()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    gain = torch.minimum(ratio * sampled.advantages, ratio.clamp(low, high) * sampled.advantages)
    loss, kl = -gain, None
    if sampled.reference_log_probs is not None:
        kl = kl_estimate(log_probs, sampled.reference_log_probs)
        loss = loss + config.kl_weight * ratio * kl
    too_far = ((ratio > high) & (sampled.advantages > 0)) | ((ratio < low) & (sampled.advantages < 0))
    figures = Figures(
        clipped_share=(sampled.weights * too_far).sum(),
        kl_nats=None if kl is None else (sampled.weights * kl.detach()).sum(),
        largest_ratio_error=(ratio.detach() - 1).abs().max(),
    )
    return (sampled.weights * loss).sum(), figures


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Return K of each sampled token, `[tokens]`: at least 0, and on average over samples of pi KL(pi || pi_ref)."""
    difference = reference_log_probs - log_probs
    return difference.exp() - difference - 1
