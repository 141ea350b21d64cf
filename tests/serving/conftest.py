"""A tiny matryoshka with the bundled tokenizer, and its export, made once."""

import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.hybrid.matryoshka import make_matryoshka
from apriel_assets.serving.export import export_release
from tests.conftest import BUNDLED
from tests.hybrid.tiny_teachers import tiny_teacher

logging.disable_progress_bar()

ALL = ("fa", "swa", "gdn", "kda", "mamba")
KEPT = {"turbo": ("gdn", "fa", "kda"), "fast": ("gdn", "swa", "mamba"), "again": ("gdn", "fa", "kda")}


def make_model(kind="llama", placements=KEPT):
    """Mixers are no more what conversion made of them, as after training."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    teacher = tiny_teacher(kind, vocab_size=len(tokenizer))
    supernet = build_supernet(teacher, (ALL, ("fa", "swa"), ALL), options={"swa": {"window": 6}}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if ".mixers." in name and ".mixers.fa." not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return make_matryoshka(supernet, placements)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="session")
def release(tokenizer, tmp_path_factory):
    """Directory of an exported release called tiny; do not change it."""
    directory = tmp_path_factory.mktemp("release")
    export_release(make_model(), tokenizer, directory, name="tiny")
    return directory
