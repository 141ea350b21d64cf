"""Log-likelihoods of continuations: each distinct input is read once, shared beginnings are read once.

Requests that differ in their last token only share a row. Rows that begin alike, as the choices of one question do
and all questions after the same examples, share one prefill: the rest of each goes on from copies of its cache. All
other rows are read in batches of about one length. Logits exist for scored positions only, a chunk at a time.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

Answer = tuple[float, bool]
"""Log-probability of a continuation, nats, and whether each of its tokens is the likeliest."""

# What one more call of the model costs, in tokens that are read instead: its weights are read again (by the device's
# FLOP per byte), and each layer takes about a millisecond to be called twice (by its FLOP/s and the model's size).
_TOKENS_PER_CALL = {"cpu": 16, "cuda": 512}
_FLOP_PER_S = {"cpu": 5e10, "cuda": 3e14}
_SECONDS_PER_LAYER = 1e-3
_COPIED_TOKENS = 16  # copies of shared tokens in a batch's cache, over the tokens that a batch may read
# Logits per chunk: as many as a CPU cache holds, more on a GPU; but with fewer tokens the product takes twice as long.
_CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**27}
_LEAST_CHUNK = 192


@dataclass(frozen=True, slots=True)
class Request:
    """Token ids; the context holds at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One input of the model, and the requests that its positions answer."""

    tokens: tuple[int, ...]  # context and continuation but for the last token
    asked: list[int] = field(default_factory=list)  # positions of the requests in their list
    first: int = 0  # first position whose next token is asked for


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows that are read together; all begin with the same `shared` tokens (0: nothing is shared)."""

    rows: tuple[Row, ...]
    shared: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, padding included."""
        return self.shared + len(self.rows) * (max(len(row.tokens) for row in self.rows) - self.shared)

    def input_ids(self, start: int = 0) -> Tensor:
        """Return the rows from position `start` on, right-padded: `[rows, longest]`."""
        width = max(len(row.tokens) for row in self.rows) - start
        ids = torch.zeros(len(self.rows), width, dtype=torch.long)
        for number, row in enumerate(self.rows):
            ids[number, : len(row.tokens) - start] = torch.tensor(row.tokens[start:])
        return ids


def make_rows(requests: Sequence[Request]) -> list[Row]:
    """Return one row per distinct input."""
    rows: dict[tuple[int, ...], Row] = {}
    firsts: dict[tuple[int, ...], int] = {}
    for position, request in enumerate(requests):
        tokens = (*request.context, *request.continuation[:-1])
        rows.setdefault(tokens, Row(tokens)).asked.append(position)
        firsts[tokens] = min(firsts.get(tokens, len(tokens)), len(request.context) - 1)
    return [Row(tokens, row.asked, firsts[tokens]) for tokens, row in rows.items()]


def plan_batches(
    rows: Sequence[Row], max_tokens: int, max_rows: int | None, least_saved: int | None
) -> list[RowBatch]:
    """Return batches of all rows: those that share a beginning, then the others, longest first.

    Args:
        rows: distinct inputs.
        max_tokens: that a batch reads, padding included; a longer row is a batch of its own.
        max_rows: of a batch; None: as many as `max_tokens` allows.
        least_saved: tokens that rows must save together to share a prefill; None: they never do.
    """
    limit = max_rows or len(rows) or 1
    alone, batches = list(rows), []
    if least_saved is not None:
        alone = []
        for group in _groups(sorted(rows, key=lambda row: row.tokens), least_saved):
            if len(group.rows) == 1:
                alone += group.rows
            else:
                most = min(limit, max(2, _COPIED_TOKENS * max_tokens // group.shared))
                batches += _cut(sorted(group.rows, key=_longest_first), group.shared, max_tokens, most)
    return batches + _cut(sorted(alone, key=_longest_first), 0, max_tokens, limit)


def _longest_first(row: Row) -> tuple[int, tuple[int, ...]]:
    return -len(row.tokens), row.tokens


@dataclass(frozen=True, slots=True)
class _Group:
    rows: tuple[Row, ...]
    shared: int
    worth: int  # tokens that sharing saves, beyond what it must save


@dataclass(slots=True)
class _Branch:
    """Neighbours in lexicographic order that have `shared` tokens in common, in the best groups found of each part."""

    shared: int
    parts: list[_Group]

    def best(self, least_saved: int) -> list[_Group]:
        """Return all of it as one group, or its parts' own groups, whichever saves more."""
        rows = tuple(row for part in self.parts for row in part.rows)
        worth = (len(rows) - 1) * self.shared - least_saved
        if worth >= max(1, sum(part.worth for part in self.parts)):
            return [_Group(rows, self.shared, worth)]
        return self.parts


def _groups(rows: Sequence[Row], least_saved: int) -> list[_Group]:
    """Return the partition of rows, in lexicographic order, that saves the most tokens.

    Rows with a beginning in common are neighbours then, and the branches of their prefix tree nest: a stack holds those
    that are still open, deepest last.
    """
    stack = [_Branch(0, [])]
    for row, following in zip(rows, (*rows[1:], None), strict=True):
        common = 0 if following is None else _common(row, following)
        parts = [_Group((row,), 0, 0)]
        while stack[-1].shared > common:
            branch = stack.pop()
            branch.parts += parts
            parts = branch.best(least_saved)
        if stack[-1].shared == common:
            stack[-1].parts += parts
        else:
            stack.append(_Branch(common, parts))
    return stack[0].parts


def _common(first: Row, second: Row) -> int:
    """Return how many tokens both begin with, none of which predicts what is asked for."""
    limit = min(first.first, second.first)
    if first.tokens[:limit] == second.tokens[:limit]:
        return limit
    pairs = zip(first.tokens, second.tokens, strict=False)
    return next(index for index, (one, other) in enumerate(pairs) if one != other)


def _cut(rows: Sequence[Row], shared: int, max_tokens: int, max_rows: int) -> list[RowBatch]:
    """Cut rows, longest first, into batches."""
    batches: list[list[Row]] = []
    room = 0
    for row in rows:
        width = len(row.tokens) - shared
        if not batches or len(batches[-1]) == max_rows or (len(batches[-1]) + 1) * room > max_tokens:
            batches.append([])
            room = width
        batches[-1].append(row)
    return [RowBatch(tuple(batch), shared) for batch in batches]


def answer_batch(
    hidden_states: Tensor, head: nn.Linear, batch: RowBatch, requests: Sequence[Request]
) -> list[tuple[int, Answer]]:
    """Return what a batch answers: positions of requests, and their answers.

    Args:
        hidden_states: after the final norm, from position `batch.shared` on, `[rows, longest, hidden]`.
        head: the LM head.
        batch: its rows.
        requests: all that the rows' numbers are about.
    """
    places: list[tuple[int, int]] = []  # row and column of each scored position
    targets: list[int] = []
    spans: list[tuple[int, int]] = []  # request, and how many positions it has
    for number, row in enumerate(batch.rows):
        for position in row.asked:
            continuation = requests[position].continuation
            end = len(row.tokens) - batch.shared
            places += [(number, column) for column in range(end - len(continuation), end)]
            targets += continuation
            spans.append((position, len(continuation)))
    index = torch.tensor(places, device=hidden_states.device)
    scored = hidden_states[index[:, 0], index[:, 1]]
    log_probs, is_top = token_log_probs(scored, head, torch.tensor(targets, device=hidden_states.device))
    sizes = [size for _, size in spans]
    sums = [part.sum().item() for part in log_probs.double().cpu().split(sizes)]
    greedy = [bool(part.all()) for part in is_top.cpu().split(sizes)]
    return [(position, (total, top)) for (position, _), total, top in zip(spans, sums, greedy, strict=True)]


def token_log_probs(hidden_states: Tensor, head: nn.Linear, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability, fp32 nats, and whether it is the likeliest token, both `[tokens]`.

    Args:
        hidden_states: after the final norm, `[tokens, hidden]`.
        head: the LM head.
        targets: token ids, `[tokens]`.
    """
    logits_at_once = _CHUNK_LOGITS.get(hidden_states.device.type, _CHUNK_LOGITS["cpu"])
    size = max(_LEAST_CHUNK, logits_at_once // head.out_features)
    log_probs, is_top = [], []
    for start in range(0, len(hidden_states), size):
        chunk = slice(start, start + size)
        logits = head(hidden_states[chunk]).float()
        own = logits.gather(-1, targets[chunk, None])[:, 0]
        log_probs.append(own - logits.logsumexp(-1))
        is_top.append(logits.argmax(-1) == targets[chunk])
    return torch.cat(log_probs), torch.cat(is_top)


def least_saved(model: "HybridForCausalLM") -> int:
    """Return how many tokens rows must save together for their shared beginning to be worth a call of its own."""
    device = model.device.type if model.device.type in _FLOP_PER_S else "cpu"
    tokens_per_s = _FLOP_PER_S[device] / (2 * model.num_parameters())
    return _TOKENS_PER_CALL[device] + round(model.num_layers * _SECONDS_PER_LAYER * tokens_per_s)


@torch.inference_mode()
def log_likelihoods(
    model: "HybridForCausalLM",
    requests: Sequence[Request],
    *,
    max_tokens: int,
    max_rows: int | None = None,
    answered: Callable[[int, Answer], None],
) -> None:
    """Score every request; `answered` is called with its position and its answer as batches finish.

    Args:
        model: in eval mode, under its active placement.
        requests: token ids; each must fit into the model.
        max_tokens: that the model reads at once.
        max_rows: rows at once; None: as `max_tokens` allows.
        answered: called once a request, in no order.
    """
    batches = plan_batches(make_rows(requests), max_tokens, max_rows, least_saved(model))
    shares = _SharedPrefill(model)
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    for batch in batches:
        ids = batch.input_ids(batch.shared).to(model.device)
        # No mask: mixers are causal and the padding is on the right, so it changes nothing before it.
        hidden = shares.continued(batch, ids) if batch.shared else model.final_hidden_states(ids)
        for position, answer in answer_batch(hidden, head, batch, requests):
            answered(position, answer)


class _SharedPrefill:
    """The cache after the tokens that a batch's rows share, kept for the batches that share the same."""

    def __init__(self, model: "HybridForCausalLM") -> None:
        self._model = model
        self._tokens: tuple[int, ...] = ()
        self._cache = model.make_cache()

    def continued(self, batch: RowBatch, rest: Tensor) -> Tensor:
        """Return the final hidden states of what follows the shared tokens, `[rows, longest, hidden]`."""
        shared, device = batch.rows[0].tokens[: batch.shared], self._model.device
        if shared != self._tokens:
            self._tokens, self._cache = shared, self._model.make_cache()
            self._model.final_hidden_states(torch.tensor([shared], device=device), cache=self._cache)
        cache: Any = copy.deepcopy(self._cache)
        cache.reorder_cache(torch.zeros(len(batch.rows), dtype=torch.long, device=device))
        positions = torch.arange(batch.shared, batch.shared + rest.shape[1], device=device)
        return self._model.final_hidden_states(
            rest, position_ids=positions.expand(len(batch.rows), -1), cache=cache
        )
