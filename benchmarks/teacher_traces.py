"""Endless batches of task traces to train the bundled teacher on; their difficulty follows the loss."""

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch.utils.data import IterableDataset, get_worker_info

from apriel_assets.evaluation.tasks.problems import draw_problem, task_names
from apriel_assets.evaluation.tasks.procedural import Range
from apriel_assets.evaluation.tasks.registry import find_task
from apriel_assets.evaluation.tasks.vocabulary import LETTERS, NUMBERS

TASKS = task_names()
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids [b, t], completion mask [b, t], task index [b]

_LEARNT_NATS = 0.15  # loss per item token under which a task counts as learnt at its present difficulty


class Curriculum:
    """Per-task difficulty and share, in shared memory so that the data workers see every change.

    Difficulty 0 draws the easiest problems of the default knobs, 1 the whole default range.
    """

    def __init__(self) -> None:
        self.difficulty = torch.full((len(TASKS),), 0.2).share_memory_()
        self.share = torch.ones(len(TASKS)).share_memory_()
        self.loss_nats = torch.full((len(TASKS),), 2.0)  # running mean per item token

    def update(self, loss_nats: torch.Tensor, task: torch.Tensor, *, ramp: float) -> None:
        """Follow the per-problem losses `[b]` of one batch; `ramp` is added to every difficulty anyway."""
        for index in range(len(TASKS)):
            own = loss_nats[task == index]
            if len(own):
                self.loss_nats[index].lerp_(own.mean(), 0.1)
        learnt = self.loss_nats < _LEARNT_NATS
        self.difficulty.copy_((self.difficulty + 0.02 * learnt + ramp).clamp(max=1))
        self.share.copy_((self.loss_nats / _LEARNT_NATS).clamp(0.35, 1.5))


class TraceStream(IterableDataset[Batch]):
    """Batches of similar length from the train split; every data worker has its own random stream."""

    def __init__(
        self, vocabulary: dict[str, int], curriculum: Curriculum, *, batch_size: int, seed: int
    ) -> None:
        self.vocabulary = vocabulary
        self.curriculum = curriculum
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        rng = Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            # Two batches at once, split by length: less padding, while each still holds every task.
            drawn = [self._draw(rng) for _ in range(2 * self.batch_size)]
            drawn.sort(key=lambda row: len(row[0]) + len(row[1]))
            halves = [drawn[: self.batch_size], drawn[self.batch_size :]]
            rng.shuffle(halves)
            yield from map(_collate, halves)

    def _draw(self, rng: Random) -> tuple[list[int], list[int], int]:
        task = rng.choices(range(len(TASKS)), self.curriculum.share.tolist())[0]
        knobs = _at_difficulty(TASKS[task], float(self.curriculum.difficulty[task]))
        while (problem := draw_problem(TASKS[task], knobs, "train", rng)) is None:
            pass
        prompt = [self.vocabulary[word] for word in ("<bos>", *problem.prompt.split())]
        completion = [self.vocabulary[word] for word in (*problem.trace.split(), "<eos>")]
        return prompt, completion, task


def _at_difficulty(name: str, difficulty: float) -> dict[str, Range]:
    knobs = find_task(name).resolve_knobs({})
    return {key: (low, low + round(difficulty * (high - low))) for key, (low, high) in knobs.items()}


def _collate(rows: Sequence[tuple[list[int], list[int], int]]) -> Batch:
    length = max(len(prompt) + len(completion) for prompt, completion, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)  # <pad> is 0
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (prompt, completion, _) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        mask[row, len(prompt) : end] = True
    return ids, mask, torch.tensor([task for *_, task in rows])


def item_mask(vocabulary: dict[str, int]) -> torch.Tensor:
    """Return which ids are items (letters, numbers), `[vocab]` bool.

    Items follow from the problem whatever the phrasing, so their loss goes to zero when a task is learnt;
    the other words' loss keeps the entropy of the phrasing.
    """
    mask = torch.zeros(len(vocabulary), dtype=torch.bool)
    mask[[vocabulary[word] for word in (*LETTERS, *NUMBERS)]] = True
    return mask
