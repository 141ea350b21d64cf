"""One training step of a teacher without some layers' attention: operation by operation, or as a CUDA graph."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from measure_bundled_teacher import attention_kept_by_row, skippable_attention
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

_WIDTH = 16  # batches are padded to multiples of this, each with its graph


def loss_backward(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Run both passes and return the loss of each completion token, nats, 0 elsewhere, `[batch, seq - 1]`.

    Args:
        ids: `[batch, seq]`.
        mask: which tokens are of the completion, `[batch, seq]` bool; the mean over them is what is differentiated.
    """
    cuda = ids.device.type == "cuda"
    # Not cached: a cast that a graph has made must not be handed to whoever runs outside of it.
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if cuda else nullcontext():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    targets, counts = ids[:, 1:], mask[:, 1:]
    losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets) * counts
    (losses.sum() / counts.sum()).backward()
    return losses.detach()


class BatchStep:
    """Gradients of one batch, skipped layers not computed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, ids: Tensor, mask: Tensor, skipped: set[int]) -> Tensor:
        """Add gradients of one batch to the parameters' own; return as `loss_backward` does."""
        with skippable_attention(self._model) as without:
            without |= skipped
            return loss_backward(self._model, ids, mask)

    def forget_gradients(self) -> None:
        """Be ready for the next batch."""
        self._model.zero_grad()


class GraphedStep:
    """The same as a CUDA graph per padded length; skipped layers are computed, and their output multiplied by 0.

    So they get a gradient of zero where `BatchStep` gives them none, and a momentum goes on moving them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._kept = torch.ones(1, model.config.num_hidden_layers, dtype=torch.bool, device=model.device)
        self._graphs: dict[tuple[int, int], tuple[Callable[[], None], Tensor, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # graphs write to this memory from now on

    def __call__(self, ids: Tensor, mask: Tensor, skipped: set[int]) -> Tensor:
        """As `BatchStep`; the tensor that is returned is overwritten by the next call."""
        num_rows, width = ids.shape
        shape = num_rows, -(-width // _WIDTH) * _WIDTH
        if shape not in self._graphs:
            self._graphs[shape] = self._captured(shape)
        replay, graph_ids, graph_mask, losses = self._graphs[shape]
        # Padding on the right: no token before it sees it, and it is in no loss.
        graph_ids.copy_(pad(ids, (0, shape[1] - width)))
        graph_mask.copy_(pad(mask, (0, shape[1] - width)))
        kept = torch.ones_like(self._kept, device="cpu")
        kept[0, list(skipped)] = False
        self._kept.copy_(kept, non_blocking=True)
        replay()
        return losses[:, : width - 1]

    def forget_gradients(self) -> None:
        """Be ready for the next batch: zero in place, since graphs know where gradients are."""
        torch._foreach_zero_([parameter.grad for parameter in self._model.parameters()])

    def _captured(self, shape: tuple[int, int]) -> tuple[Callable[[], None], Tensor, Tensor, Tensor]:
        device = self._model.device
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        mask = torch.ones(shape, dtype=torch.bool, device=device)
        held = [parameter.grad.clone() for parameter in self._model.parameters()]
        with attention_kept_by_row(self._model, self._kept):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):  # once outside: libraries set themselves up
                loss_backward(self._model, ids, mask)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                losses = loss_backward(self._model, ids, mask)
        for parameter, before in zip(self._model.parameters(), held, strict=True):
            parameter.grad.copy_(before)
        return graph.replay, ids, mask, losses
