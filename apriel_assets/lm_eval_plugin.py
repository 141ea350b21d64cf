"""Makes EleutherAI's lm-evaluation-harness know the model `apriel` and our tasks, in every program that imports it.

The harness has no entry points for models or tasks. `lm_eval_plugin.pth`, which is installed beside the package, runs
`install` when Python starts; all that does is to wait: nothing of the harness or of ours is imported until a program
imports the harness itself.
"""

# Every Python of the environment runs this: nothing is imported here that has not been already.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TASKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "evaluation", "lm_eval_tasks")
"""Our task files."""


def _add_model(models: "ModuleType") -> None:
    from lm_eval.api.registry import model_registry

    if "apriel" not in model_registry:
        model_registry.register("apriel", target="apriel_assets.evaluation.lm_eval_model:AprielLM")


def _add_tasks(index: "ModuleType") -> None:
    from pathlib import Path

    build: Callable[..., Any] = index.TaskIndex.build

    def build_with_ours(paths: "Sequence[Path]", **options: "Any") -> "Any":
        return build([*paths, *({Path(TASKS)} - set(paths))], **options)

    index.TaskIndex.build = staticmethod(build_with_ours)


_AFTER_IMPORT = {"lm_eval.models": _add_model, "lm_eval.tasks._index": _add_tasks}


class _Waiting:
    """Lets modules be imported as ever, and has something done to some of them afterwards."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in _AFTER_IMPORT:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run: Callable[[ModuleType], None] = spec.loader.exec_module

        def run_and_add(module: "ModuleType") -> None:
            run(module)
            _AFTER_IMPORT[fullname](module)

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Wait for the harness to be imported; a module of it that already was is seen to at once."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Waiting())
    for name, add in _AFTER_IMPORT.items():
        if name in sys.modules:
            add(sys.modules[name])
