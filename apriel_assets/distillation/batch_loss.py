"""What a training step minimises: the divergence from the teacher, and the mixers' output error if asked."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apriel_assets.distillation.batches import Batch
from apriel_assets.distillation.causal_lm import CausalLM, final_hidden_states, lm_head
from apriel_assets.distillation.config import DistillConfig
from apriel_assets.distillation.losses import TeacherHead, token_loss
from apriel_assets.distillation.mixer_outputs import matched_outputs


class BatchLoss(nn.Module):
    """The loss of one micro-batch as a module: a distributed wrapper hooks into `forward`."""

    def __init__(
        self, student: PreTrainedModel, teacher: CausalLM | None, config: DistillConfig, matching: float
    ) -> None:
        super().__init__()
        self.student = student
        # In a tuple, so that it is no submodule: it is neither wrapped, saved, nor switched to training mode.
        self._teacher = (teacher,)
        self._config, self._matching = config, matching

    @property
    def teacher(self) -> CausalLM | None:
        return self._teacher[0]

    def forward(self, batch: Batch, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the micro-batch's share of the loss, and of all that is minimised: fp32 scalars."""
        if not self._matching:
            loss = self._divergence(batch, num_tokens)
            return loss.detach(), loss
        with matched_outputs(cast(Any, self.student), batch.attention_mask) as errors:
            loss = self._divergence(batch, num_tokens)
        if not errors:
            return loss.detach(), loss
        share = batch.mask.sum() / num_tokens
        return loss.detach(), loss + self._matching * share * torch.stack(errors).mean()

    def _divergence(self, batch: Batch, num_tokens: int) -> Tensor:
        # No mask: padding is on the right and mixers are causal, so no token of a trace sees it.
        reference = None
        if (teacher := self.teacher) is not None:
            with torch.no_grad():
                hidden = final_hidden_states(teacher, batch.input_ids, packing=batch.packing)
            reference = TeacherHead(hidden, lm_head(teacher))
        return token_loss(
            final_hidden_states(self.student, batch.input_ids, packing=batch.packing),
            lm_head(self.student),
            batch.mask,
            loss=self._config.loss,
            teacher=reference,
            targets=batch.targets,
            temperature=self._config.temperature,
            num_tokens=num_tokens,
        )
