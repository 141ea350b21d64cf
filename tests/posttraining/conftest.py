"""A tiny matryoshka that can be taught one thing: to answer a prompt by a token that it half likes."""

import pytest
import torch

from apriel_assets.evaluation.tasks.problems import Problem
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.hybrid.matryoshka import make_matryoshka
from tests.scoring.tiny_supernet import TOKENIZER, make_supernet

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a b c", "d e", "f g h i", "j k"]


@pytest.fixture
def matryoshka():
    supernet = make_supernet(mixers=("gdn", "kda", "swa"))
    return make_matryoshka(supernet, {"turbo": ("gdn", "fa", "kda"), "fast": ("gdn", "swa", "swa")}).eval()


@pytest.fixture
def lesson(matryoshka):
    """Problems whose answer is turbo's second likeliest letter: found by sampling, not yet what it says."""
    ids = TOKENIZER.convert_tokens_to_ids(list(LETTERS))
    matryoshka.set_placement("turbo")
    asked = []
    for number, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = matryoshka(torch.tensor([TOKENIZER(prompt).input_ids])).logits[0, -1, ids]
        answer = LETTERS[int(logits.argsort(descending=True)[1])]
        problem = Problem(
            task="letter", problem_id=f"letter-{number}", prompt=prompt, trace=answer, answer=answer
        )
        asked.append((TaskSpec(file="letters.jsonl", label="letter"), problem))
    matryoshka.set_placement("safe")
    return asked
