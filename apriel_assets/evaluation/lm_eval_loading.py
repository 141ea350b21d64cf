"""The model and the tokenizer that `lm_eval --model apriel` names, and what tells two versions of them apart."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.own_tokenizer import check_own_tokenizer, has_tokenizer, tokenizer_digest
from apriel_assets.hybrid.any_checkpoint import load_any
from apriel_assets.hybrid.foreign_files import check_directory, in_one_line
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.placement import placement_from_map
from apriel_assets.hybrid.teacher import check_teacher
from apriel_assets.paths import expanded
from apriel_assets.progress import Progress

_HASHED = ("*.safetensors", "*.json", "*.bin", "*.model", "*.jinja")


def load_for_harness(
    pretrained: str | PreTrainedModel,
    placement: str | Sequence[str] | None,
    tokenizer: str | PreTrainedTokenizerBase | None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model under a placement, and its tokenizer.

    A causal LM whose attention can be exchanged comes as an all-FA hybrid, whose logits are its own; any other one as
    it is. Arguments as those of `AprielLM`.

    Raises:
        UserError: nothing to load, no such placement, no tokenizer, or another one than the model's own.
    """
    if isinstance(pretrained, PreTrainedModel):
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError("a model in memory needs its tokenizer in memory, too")
        model, own = pretrained, tokenizer
    else:
        model = _read_model(pretrained, dtype, revision)
        model = model.to(_present(device))  # type: ignore[arg-type]
        own = _read_tokenizer(pretrained, tokenizer, revision)
    embeddings: Any = model.get_input_embeddings()
    if len(own) > embeddings.num_embeddings:
        raise UserError(
            f"the tokenizer has {len(own)} tokens, the model only {embeddings.num_embeddings}: it is another model's"
        )
    if placement is not None:
        _set_placement(model, placement)
    return model.eval(), own


def _present(device: str | None) -> str:
    # lm-eval's command line asks for cuda:0 unless told otherwise, wherever it runs.
    has_gpu = torch.cuda.is_available()
    return (device or "cuda") if has_gpu or not str(device or "cuda").startswith("cuda") else "cpu"


def _set_placement(model: PreTrainedModel, placement: str | Sequence[str]) -> None:
    if not isinstance(model, HybridForCausalLM):
        raise UserError(
            f"placement={placement}: {type(model).__name__} has no mixers to choose from; leave it out"
        )
    if isinstance(placement, str) and placement not in model.placements:
        found = placement_from_map(placement, model.num_layers)
        if found is None:
            raise UserError(
                f"placement={placement} is neither a name ({', '.join(model.placements) or 'none here'}) nor a map of "
                f"{model.num_layers} layers, such as {'F' * model.num_layers}"
            )
        placement = found
    model.set_placement(placement if isinstance(placement, str) else tuple(placement))


def _read_model(pretrained: str, dtype: str, revision: str | None) -> PreTrainedModel:
    path = expanded(pretrained)
    kind = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(kind, str | torch.dtype):
        raise UserError(f"dtype={dtype} is no data type of torch; give auto, float32 or bfloat16")
    if path.is_dir() and _is_hybrid(path):
        model = load_any(path)
        return model if kind == "auto" else model.to(kind)  # type: ignore[arg-type]
    if path.is_dir():
        check_directory(path)
    options = {
        "dtype": kind,
        "revision": revision or "main",
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    where = str(path) if path.is_dir() else pretrained
    plain = in_one_line(
        f"pretrained={pretrained}", lambda: AutoModelForCausalLM.from_pretrained(where, **options)
    )
    try:
        check_teacher(plain)
    except UserError:
        return plain
    return HybridForCausalLM.from_teacher(plain, copy=False)


def _is_hybrid(path: Path) -> bool:
    try:
        return json.loads((path / "config.json").read_text()).get("model_type") == HybridConfig.model_type
    except (OSError, ValueError) as error:
        raise UserError(f"pretrained={path} has no config.json that can be read: {error}") from error


def _read_tokenizer(
    pretrained: str, given: str | PreTrainedTokenizerBase | None, revision: str | None
) -> PreTrainedTokenizerBase:
    path = expanded(pretrained)
    has_own = not path.is_dir() or has_tokenizer(path)
    own = _tokenizer_of(str(path) if path.is_dir() else pretrained, revision) if has_own else None
    other = _tokenizer_of(given, None) if isinstance(given, str) else given
    if own is None and other is None:
        raise UserError(f"{pretrained} holds no tokenizer; give the one of its teacher: tokenizer=DIRECTORY")
    if own is not None and other is not None:
        check_own_tokenizer(own, other, f"tokenizer={given}", pretrained)
    found = own or other
    assert found is not None
    return found


def _tokenizer_of(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    path = expanded(name)
    options = {"revision": revision or "main", "trust_remote_code": False}
    where = str(path) if path.is_dir() else name
    return in_one_line(f"tokenizer {name}", lambda: AutoTokenizer.from_pretrained(where, **options))


def answers_scope(
    pretrained: str | PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **settings: Any,
) -> str:
    """Return what decides a model's answers: its weights by content, placement, tokenizer and settings.

    Raises:
        UserError: a model in memory, whose weights have no files to name them.
    """
    if not isinstance(pretrained, str):
        raise UserError(
            "answers of a model in memory are kept in a KeptAnswers whose scope names its version"
        )
    path = expanded(pretrained)
    content = hashlib.sha256()
    for file in sorted({own for pattern in _HASHED for own in path.glob(pattern)}):
        with file.open("rb") as opened:
            content.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    placement = list(model.placement) if isinstance(model, HybridForCausalLM) else None
    decided = {
        "weights": content.hexdigest()
        if path.is_dir()
        else [pretrained, getattr(model.config, "_commit_hash", None)],
        "placement": placement,
        "dtype": str(model.dtype),
        "tokenizer": tokenizer_digest(tokenizer),
        **settings,
    }
    return json.dumps(decided, sort_keys=True)


def show_bar() -> Progress:
    """Return what shows answered requests as the harness shows its own progress."""
    bar: tqdm | None = None

    def show(done: int, total: int, **_: float) -> None:
        nonlocal bar
        if bar is None or bar.total != total or done < bar.n:
            bar = tqdm(total=total, desc="Answering requests")
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            bar = None

    return show


def say_errors_in_one_line() -> None:
    """Let a user error that nobody catches end the program with one line and code 2, as the `apriel` command does."""
    before = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, UserError):
            return before(kind, error, traceback)
        print(f"apriel: {error}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = say
