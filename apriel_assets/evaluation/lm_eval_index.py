"""What the harness's task files say, without importing the harness: which tasks there are, and whose data they read.

Indexing them as the harness does takes many seconds; a plan must know before that whether a name is wrong and whether
a network will be needed.
"""

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from apriel_assets.errors import UserError
from apriel_assets.lm_eval_plugin import TASKS
from apriel_assets.paths import expanded

# `task: name`, `"group": "name"`, `tag: name`, `tag: [one, other]`, and `tag:` with a list below.
_NAMED = re.compile(r"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'\[\]#,]+)", re.MULTILINE)
_TAGS = re.compile(
    r"^[\"']?tag[\"']?[ \t]*:[ \t]*(?:\[([^\]]*)\]|\n((?:[ \t]*-[ \t]*\S+[ \t]*\n?)+))", re.MULTILINE
)
_FILE_READERS = {
    "json",
    "csv",
    "text",
    "parquet",
    "arrow",
}  # of `datasets`: their data are files named in the task


_MOST_INCLUDED = 20


class _Loader(yaml.SafeLoader):
    """Reads task files; what they would have imported is its name."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def check_installed() -> None:
    """Raise UserError if the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-eval tasks need a package that is not installed: pip install 'apriel-assets[lm-eval]'"
        )


def is_ours(name: str, include_path: str | None) -> bool:
    """Return whether a task's files are ours or in `include_path`, so that the harness's own need not be indexed."""
    return any(name in names_in(folder) for folder in _own_folders(include_path))


def check_name(name: str, include_path: str | None) -> None:
    """Check that there is such a task, group or tag.

    Raises:
        UserError: there is none, naming the nearest; the harness is not installed; no such directory.
    """
    check_installed()
    if not _files(name, include_path):
        known = [own for folder in _folders(include_path) for own in names_in(folder)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
        raise UserError(f"lm-eval has no task {name!r}; {hint}")


def hub_data(name: str, include_path: str | None) -> set[str]:
    """Return the hub's data sets, or addresses, that a task or the tasks of a group read; check the files they name.

    Raises:
        UserError: a file that a task names is not there.
    """
    return set(_hub_data(name, include_path, set()))


def is_on_this_machine(data: str) -> bool:
    """Return whether a data set of the hub was fetched before."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    fetched = (hub / f"datasets--{data.replace('/', '--')}").is_dir()
    return (
        fetched
        or (prepared / data.replace("/", "___").lower()).is_dir()
        or (prepared / data.replace("/", "___")).is_dir()
    )


@functools.lru_cache(maxsize=8)
def names_in(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Return every task, group and tag of a directory's task files, with the files that define or carry it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            names = _names(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise UserError(f"lm-eval task file {path} cannot be read: {error}") from error
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


def _names(text: str) -> list[str]:
    """Return what a task file defines and carries; parsed only where it is not written line by line."""
    if text.lstrip().startswith("{"):
        content = _parsed(text)
        tags = content.get("tag") or []
        names = [content.get("task"), content.get("group"), *([tags] if isinstance(tags, str) else tags)]
        return [name for name in names if isinstance(name, str)]
    names = _NAMED.findall(text)
    for inline, below in _TAGS.findall(text):
        names += [part.strip(" -\"'") for part in re.split(r"[,\n]", inline or below) if part.strip(" -\"'")]
    return names


def _own_folders(include_path: str | None) -> list[Path]:
    if include_path is None:
        return [Path(TASKS)]
    folder = expanded(include_path)
    if not folder.is_dir():
        raise UserError(f"include_path {include_path}: no such directory; correct the path in evals.lm_eval")
    return [folder, Path(TASKS)]


def _folders(include_path: str | None) -> list[Path]:
    spec = importlib.util.find_spec("lm_eval")
    harness = [Path(own) / "tasks" for own in (spec.submodule_search_locations or ())] if spec else []
    return [*_own_folders(include_path), *harness]


def _files(name: str, include_path: str | None) -> tuple[Path, ...]:
    for folder in _folders(include_path):
        if paths := names_in(folder).get(name):
            return paths
    return ()


def _hub_data(name: str, include_path: str | None, seen: set[str]) -> Iterator[str]:
    if name in seen:
        return
    seen.add(name)
    for path in _files(name, include_path):
        yield from _data_of(_read(path), include_path, seen, path)


def _data_of(
    content: Mapping[str, Any], include_path: str | None, seen: set[str], path: Path
) -> Iterator[str]:
    if isinstance(members := content.get("task"), list):
        for member in members:
            if isinstance(member, str):
                yield from _hub_data(member, include_path, seen)
            elif isinstance(member, Mapping):
                yield from _data_of(member, include_path, seen, path)
                if isinstance(own := member.get("task") or member.get("group"), str):
                    yield from _hub_data(own, include_path, seen)
        return
    data = content.get("dataset_path")
    if not data or content.get("custom_dataset"):
        return
    if data not in _FILE_READERS:
        if not expanded(str(data)).exists():
            yield str(data)
        return
    for file in _named_files((content.get("dataset_kwargs") or {}).get("data_files")):
        if "://" in file:
            yield file
        elif "*" not in file and not expanded(file).exists():
            raise UserError(f"lm-eval task {content.get('task')} ({path}) reads {file}, which is not there")


def _named_files(files: Any) -> Iterator[str]:
    if isinstance(files, str):
        yield files
    elif isinstance(files, Mapping | list):
        for own in files.values() if isinstance(files, Mapping) else files:
            yield from _named_files(own)


def _parsed(text: str) -> dict[str, Any]:
    """Return a task file's own keys; none if it is no mapping.

    Raises:
        ValueError: it is no YAML.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  it extends the safe loader by a name as text
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error
    return content if isinstance(content, dict) else {}


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a task file with what it includes; its own keys win."""
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"lm-eval task file {path} cannot be read: {error}") from error
    if len(above) > _MOST_INCLUDED:
        raise UserError(f"lm-eval task file {path} includes itself, or {_MOST_INCLUDED} others in a row")
    includes = content.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= _read(path.parent / str(include), (*above, path))
    return merged | content
