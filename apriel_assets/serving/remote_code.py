"""The model's code as one file that travels with the weights: `trust_remote_code=True` loads them without our package.

The file is made from our own modules, so nothing is written twice: imports of each other are dropped, those of
libraries joined, and what is left is put in the order in which the modules need each other.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULE = "modeling_apriel_hybrid"
AUTO_MAP = {"AutoConfig": f"{MODULE}.HybridConfig", "AutoModelForCausalLM": f"{MODULE}.HybridForCausalLM"}
"""What config.json says about which class loads it."""

_PACKAGE = "apriel_assets"
_ROOT = Path(__file__).parent.parent
_MODEL = f"{_PACKAGE}.hybrid.model"
# Needs a GPU library to be imported at all, so it stays a file of its own, which only a GPU reads.
_APART = {f"{_PACKAGE}.hybrid.mixers.mamba.carried_state": "carried_state_apriel_hybrid"}
# transformers refuses code whose libraries are not installed, unless it tries to import them.
_OPTIONAL = ("fla", "mamba_ssm")


_Import = tuple[str | None, str, str | None]
"""Module (None: `import name`), name, and the name that it gets here (None: its own)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """One module: what it imports and what it does."""

    name: str
    needs: tuple[str, ...]  # our modules
    imports: tuple[_Import, ...]  # of libraries
    body: str
    defines: frozenset[str]


def remote_code() -> dict[str, str]:
    """Return the files to put beside the weights, by name."""
    parts: dict[str, _Part] = {}
    _collect(_MODEL, parts)
    _refuse_collisions(list(parts.values()))
    imports = {own for part in parts.values() for own in part.imports}
    bodies = [f"# From {part.name}\n\n{part.body}" for part in parts.values()]
    head = f'"""The model class of this checkpoint, made from {_PACKAGE} by {__name__}; edit it there."""'
    text = "\n\n\n".join(["\n\n".join([head, _import_lines(imports)]), *bodies]) + "\n"
    files = {f"{MODULE}.py": text}
    for module, name in _APART.items():
        files[f"{name}.py"] = _path(module).read_text()
    return files


def write_remote_code(directory: Path) -> None:
    """Write the files into a checkpoint's directory."""
    for name, text in remote_code().items():
        (directory / name).write_text(text)


def _collect(module: str, parts: dict[str, _Part]) -> None:
    """Add a module after all those that it needs."""
    part = _read(module)
    for needed in part.needs:
        if needed not in parts:
            _collect(needed, parts)
    parts[module] = part


def _path(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _read(module: str) -> _Part:
    text = _path(module).read_text()
    lines, needs, imports, defines = text.splitlines(), [], [], set[str]()
    tree = ast.parse(text)
    for index, statement in enumerate(tree.body):
        docstring = index == 0 and ast.get_docstring(tree) is not None
        if docstring or _is_for_types(statement) or _registers(statement):
            _blank(lines, statement)
        elif isinstance(statement, ast.ImportFrom) and _is_ours(statement):
            assert all(alias.asname is None for alias in statement.names), (
                f"{module} imports under another name"
            )
            needs.append(str(statement.module))
            _blank(lines, statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            source = statement.module if isinstance(statement, ast.ImportFrom) else None
            imports += [(source, alias.name, alias.asname) for alias in statement.names]
            _blank(lines, statement)
        defines |= _names(statement)
    _mend_inner_imports(tree, lines)
    body = "\n".join(lines).strip()
    return _Part(
        name=module,
        needs=tuple(needs),
        imports=tuple(imports),
        body=body,
        defines=frozenset(defines),
    )


def _is_ours(statement: ast.ImportFrom) -> bool:
    return (statement.module or "").split(".")[0] == _PACKAGE


def _is_for_types(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Name)
        and statement.test.id == "TYPE_CHECKING"
    )


def _registers(statement: ast.stmt) -> bool:
    """Whether a module calls something when it is imported: transformers knows the classes by `AUTO_MAP` instead."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


def _blank(lines: list[str], statement: ast.stmt) -> None:
    assert statement.end_lineno is not None
    for line in range(statement.lineno - 1, statement.end_lineno):
        lines[line] = ""


def _mend_inner_imports(tree: ast.Module, lines: list[str]) -> None:
    """Let imports inside functions find what lies beside the file, and libraries that need not be installed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.col_offset == 0:
            continue
        first, indent = node.lineno - 1, " " * node.col_offset
        own = (node.module or "").split(".")[0]
        if node.module in _APART:
            moved = ast.ImportFrom(module=_APART[node.module], names=node.names, level=1)
            _blank(lines, node)
            lines[first] = indent + ast.unparse(moved)
        elif own in _OPTIONAL:
            statement = ast.unparse(node)
            _blank(lines, node)
            tried = ("try:", f"    {statement}", "except ImportError:", "    raise")
            lines[first] = "\n".join(indent + line for line in tried)


def _names(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Assign():
            return {target.id for target in statement.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _import_lines(imports: Iterable[_Import]) -> str:
    whole = [(name, alias) for source, name, alias in imports if source is None]
    lines = [f"import {_called(name, alias)}" for name, alias in sorted(whole, key=str)]
    by_source: dict[str, list[str]] = {}
    for source, name, alias in sorted(imports, key=str):
        if source is not None:
            by_source.setdefault(source, []).append(_called(name, alias))
    lines += [f"from {source} import {', '.join(names)}" for source, names in sorted(by_source.items())]
    return "\n".join(lines)


def _called(name: str, alias: str | None) -> str:
    return name if alias is None else f"{name} as {alias}"


def _refuse_collisions(parts: Sequence[_Part]) -> None:
    """Check that a name means one thing in all modules: in one file the last meaning would win."""
    meaning: dict[str, str] = {}
    for part in parts:
        own: dict[str, str] = dict.fromkeys(part.defines, part.name)
        for source, name, alias in part.imports:
            bound = alias or name.split(".")[0]  # `import a.b` binds a
            own[bound] = f"import of {source}.{name}" if source or alias else f"import of {bound}"
        for name, meant in own.items():
            before = meaning.setdefault(name, meant)
            assert before == meant, f"{name} is {meant} in {part.name}, and {before} before; rename one"
