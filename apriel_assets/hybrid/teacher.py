"""Load the model that students come from, and say what it is.

Any causal LM of transformers, from the hub, a directory or a GGUF file, as long as its attention can be
exchanged and its logits are its LM head applied to the final hidden states: losses are computed from those.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from apriel_assets.errors import UserError
from apriel_assets.hybrid.checkpoint import refuse_incomplete
from apriel_assets.hybrid.foreign_files import check_directory, check_size, in_one_line
from apriel_assets.hybrid.gguf_header import check_gguf
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.surgery import check_attention_call, find_decoder_layers
from apriel_assets.paths import expanded

BUNDLED = Path(__file__).parent.parent / "bundled" / "teacher"

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OTHER_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What to hand to transformers' loaders, and which files that reads."""

    path: Path
    arguments: dict[str, Any]
    files: tuple[Path, ...]
    revision: str | None  # the hub's commit, where it comes from the hub


def load_teacher(
    spec: TeacherSpec, *, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, in eval mode, and its tokenizer, which pads on the left and always has a pad token.

    Raises:
        UserError: not found, or not usable as a teacher; names the class that is not.
    """
    source = _find(spec)
    _config(spec, source)
    options = {"dtype": getattr(torch, spec.dtype), "output_loading_info": True, "use_safetensors": True}
    model, info = _from_files(AutoModelForCausalLM, spec, source, ignore_mismatched_sizes=True, **options)
    refuse_incomplete(spec.model, info)
    model = model.to(device).eval()
    _forget_gguf(model)
    tokenizer = _tokenizer(spec, source)
    in_one_line(_whose(spec), lambda: check_teacher(model, tokenizer))
    return model, tokenizer


def load_tokenizer(spec: TeacherSpec) -> PreTrainedTokenizerBase:
    """Return the tokenizer alone; errors as `load_teacher`."""
    return _tokenizer(spec, _find(spec))


def _tokenizer(spec: TeacherSpec, source: _Source) -> PreTrainedTokenizerBase:
    tokenizer = _from_files(AutoTokenizer, spec, source)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {spec.model} has neither a pad nor an eos token; add one to its files"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _forget_gguf(model: PreTrainedModel) -> None:
    """Make a model read from a GGUF file an ordinary one: its weights are plain by now, only marks are left.

    With the marks, transformers refuses to save it, or anything made from it.
    """
    if getattr(model, "quantization_method", None) == "gguf":
        for mark in ("hf_quantizer", "quantization_method"):
            vars(model).pop(mark, None)
        vars(model)["is_quantized"] = False
        delattr(model.config, "quantization_config")


def check_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Check that students can be made from a model, and trained against it.

    Raises:
        UserError: layers or attention of an unexpected kind, logits that are not the LM head's output, or a
            tokenizer with ids beyond the embedding; names the class.
    """
    check_attention_call(find_decoder_layers(model))
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    if tokenizer is not None and len(tokenizer) > embedding.num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} ids, the embedding of {type(model).__name__} only "
            f"{embedding.num_embeddings} rows; they do not belong together"
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear LM head, only {type(head).__name__}")
    input_ids = torch.arange(3, device=model.device)[None] % embedding.num_embeddings
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(
            input_ids=input_ids, use_cache=False
        ).last_hidden_state
        logits = model(input_ids=input_ids, use_cache=False).logits
        if not torch.allclose(head(hidden).float(), logits.float(), rtol=1e-3, atol=1e-3):
            raise UserError(
                f"the logits of {type(model).__name__} are not its LM head of the final hidden states "
                "(a soft cap or a scale?); such models cannot be teachers"
            )


def teacher_facts(spec: TeacherSpec) -> dict[str, Any]:
    """Return what a teacher is, without loading its weights.

    Returns:
        num_layers, hidden_size, num_heads, num_kv_heads, head_size, vocab_size, num_parameters (tied ones
        once), architecture (class name), digest (SHA-256 over names and contents of all its files), path,
        revision (the hub's commit, or None).

    Raises:
        UserError: not found, or a model without the usual attention; names the class.
    """
    source = _find(spec)
    config = _config(spec, source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    check_attention_call(find_decoder_layers(model))
    text = config.get_text_config(decoder=True)
    return {
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        "head_size": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "vocab_size": text.vocab_size,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "architecture": type(model).__name__,
        "digest": _digest(source.files),
        "path": str(source.path),
        "revision": source.revision,
    }


def _find(spec: TeacherSpec) -> _Source:
    """Resolve a spec to files on this machine, downloading from the hub if that is where they are."""
    path = BUNDLED if spec.model == "bundled" else expanded(spec.model)
    revision = None
    if path.suffix == ".gguf" and path.is_file():
        return _Source(path=path.parent, arguments={"gguf_file": path.name}, files=(path,), revision=None)
    if path.is_file():
        raise UserError(
            f"teacher.model {spec.model} is a file, but no .gguf; give a directory or a .gguf file"
        )
    if not path.is_dir():
        path, revision = _download(spec)
    if spec.gguf_file:
        file = path / spec.gguf_file
        if not file.is_file() or Path(spec.gguf_file).is_absolute() or ".." in Path(spec.gguf_file).parts:
            raise UserError(f"teacher.gguf_file {spec.gguf_file} is not in {spec.model}")
        return _Source(path=path, arguments={"gguf_file": spec.gguf_file}, files=(file,), revision=revision)
    files = sorted({file for pattern in (*_WEIGHTS, "*.bin", *_OTHER_FILES) for file in path.glob(pattern)})
    if path / "config.json" not in files:
        raise UserError(f"teacher.model {spec.model}: no config.json in {path}")
    return _Source(path=path, arguments={}, files=tuple(files), revision=revision)


def _download(spec: TeacherSpec) -> tuple[Path, str]:
    """Return the local snapshot of a hub model, and its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [spec.gguf_file] if spec.gguf_file else [*_WEIGHTS, *_OTHER_FILES, "*.py"]
    try:
        path = Path(snapshot_download(spec.model, revision=spec.revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(
            f"teacher.model {spec.model}: no such directory or .gguf file, and no hub id either"
        ) from error
    except Exception as error:  # the hub client raises errors of its own, of requests and of the file system
        raise UserError(
            f"teacher.model {spec.model}: no such directory, and the hub gave {type(error).__name__}; "
            "check the name and the network, or give a local directory or .gguf file"
        ) from error
    return path, path.name


def _from_files(loader: Any, spec: TeacherSpec, source: _Source, **kwargs: Any) -> Any:
    """Call one of the Auto classes, turning its complaints into one line."""
    options = {"trust_remote_code": spec.trust_remote_code, **source.arguments, **kwargs}
    return in_one_line(
        f"{_whose(spec)}: {loader.__name__}", lambda: loader.from_pretrained(source.path, **options)
    )


def _config(spec: TeacherSpec, source: _Source) -> PreTrainedConfig:
    """Return the config, once it is known that it and the weights are what they say."""
    if "gguf_file" in source.arguments:
        check_gguf(source.files[0])
    else:
        check_directory(source.path)
    config = _from_files(AutoConfig, spec, source)
    weights = [file for file in source.files if file.suffix in (".safetensors", ".gguf")]
    check_size(config, weights, _whose(spec), trust_remote_code=spec.trust_remote_code)
    return config


def _whose(spec: TeacherSpec) -> str:
    return f"teacher.model {spec.model}"


def _digest(files: tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
