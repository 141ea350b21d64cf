"""Model files that somebody else made: looked at before a library makes anything of them, and read in one line or not.

transformers follows what files say: to other directories and to the hub (adapters), to code (kernels), and to as much
memory as a config asks for, which it fills at random where weights are missing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from apriel_assets.errors import UserError

_MOST_JSON_BYTES = 1 << 24
_MOST_REPEATED = 1024  # layers, experts: each is made before its size is known
_VALUES_PER_BYTE = 8  # of a weight file: formats of one bit a weight exist
_SPARE_VALUES = 1 << 20  # for what is computed, not stored
_INDEX = "model.safetensors.index.json"


def check_directory(directory: Path) -> None:
    """Check the parts of a checkpoint that lead elsewhere or ask for more than a model has.

    Raises:
        UserError: an adapter, code to fetch, weights outside of the directory, JSON that is none, absurd numbers.
    """
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} holds an adapter, whose base model is elsewhere; merge them and give the result"
        )
    for where, value in _settings(_read_json(directory / "config.json")):
        key = where.rsplit(".", 1)[-1]
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise UserError(f"{directory}: config.json wants the code of {value}; remove {where}")
        if isinstance(value, int) and not abs(value) < 2**53:
            raise UserError(f"{directory}: config.json: {where} is no number of a model")
        if ("layers" in key or "experts" in key) and isinstance(value, int) and value > _MOST_REPEATED:
            raise UserError(f"{directory}: config.json: {where}={value}, more than {_MOST_REPEATED}")
    if (directory / _INDEX).exists():
        files = _read_json(directory / _INDEX).get("weight_map")
        names = files.values() if isinstance(files, Mapping) else [None]
        if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise UserError(f"{directory}: {_INDEX} names {outside[0]!r}, which is no file beside it")


def check_size(config: PreTrainedConfig, weights: list[Path], whose: str, **kwargs: Any) -> None:
    """Check that a config describes no larger a model than its weight files can hold.

    Args:
        config: of the model.
        weights: its files.
        whose: for the message.
        **kwargs: for `from_config`.

    Raises:
        UserError: it does, or no model can be made of it.
    """
    stored = sum(path.stat().st_size for path in weights)

    def build() -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **kwargs)

    model = in_one_line(whose, build)
    described = sum(own.numel() for own in (*model.parameters(), *model.buffers()))
    if described > _VALUES_PER_BYTE * stored + _SPARE_VALUES:
        raise UserError(
            f"{whose}: its config describes {described:,} values, its {stored:,} bytes of weights cannot hold them"
        )


def in_one_line(whose: str, read: Any) -> Any:
    """Return what `read()` returns; whatever a library complains of in files is the files' fault.

    Raises:
        UserError: the complaint's first line.
    """
    try:
        return read()
    except UserError:
        raise
    except BaseException as error:
        # A panic in a Rust library is no Exception to Python.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0][:300] if lines else type(error).__name__
        raise UserError(f"{whose} cannot be read: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise UserError(f"{path} has more than {_MOST_JSON_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON that can be read: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, not an object")
    return content


def _settings(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _settings(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _settings(value, where)
    else:
        yield where, content
