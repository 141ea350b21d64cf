"""vLLM's engine as an engine process drives one: requests in, the tokens of a step out."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape
from apriel_assets.hybrid.config import KimiDeltaConfig, MambaConfig, SlidingWindowConfig
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.serving.batching import Event, Finish, Request
from apriel_assets.serving.cache_groups import cache_groups
from apriel_assets.serving.vllm_plugin.registering import register
from apriel_assets.serving.vllm_plugin.servable import LayerPlan, layer_plan

if TYPE_CHECKING:
    from vllm import RequestOutput  # pyright: ignore[reportMissingImports]

_SPARE_BLOCKS = 4  # beyond what the slots need: vLLM keeps one for nobody, and some in hand
_CPU_BLOCK_TOKENS = 128


class VllmBatch:
    """Stands where `ContinuousBatch` stands."""

    def __init__(self, directory: Path, *, num_slots: int, capacity: int) -> None:
        """
        Args:
            directory: a fixed-layout export.
            num_slots: requests decoded together.
            capacity: most tokens of a request, prompt and completion.

        Raises:
            UserError: vLLM cannot serve it; says why.
        """
        # In this process: it is one engine's own already. vLLM reads these when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # OMP_NUM_THREADS says how many threads; bound, those of all engines would share the first cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]

        config = HybridConfig.from_pretrained(directory)
        self.cache_bytes = _cache_bytes(config, layer_plan(config), num_slots, capacity)
        self.weight_bytes = json.loads((directory / "model.safetensors.index.json").read_text())["metadata"][
            "total_size"
        ]
        register()  # vLLM does it by our entry point, where the package is installed and not merely found
        arguments = EngineArgs(
            model=str(directory),
            skip_tokenizer_init=True,
            dtype=str(config.dtype).removeprefix("torch."),  # vLLM's own choice turns fp32 into bf16
            max_model_len=capacity,
            max_num_seqs=num_slots,
            kv_cache_memory_bytes=self.cache_bytes,
            enable_prefix_caching=False,  # which would keep states of prompts that went by
            enforce_eager=not _on_gpu(),  # else vLLM compiles, for which a CPU needs a C++ compiler
        )
        try:
            self._engine = LLMEngine.from_engine_args(arguments)
        except (ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"vLLM cannot serve {directory}: {reason}") from error
        self._requests: dict[int, Request] = {}
        self._num_slots = num_slots

    @property
    def num_waiting(self) -> int:
        return max(0, len(self._requests) - self._num_slots)

    @property
    def num_running(self) -> int:
        return min(len(self._requests), self._num_slots)

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._requests

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UserError: vLLM refuses it.
        """
        from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        own = request.sampling
        params = SamplingParams(
            max_tokens=own.max_new_tokens,
            temperature=own.temperature,
            top_p=own.top_p,
            seed=own.seed if own.temperature else None,
            stop_token_ids=sorted(request.stop_ids),
            ignore_eos=True,  # what ends a request, it says itself
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt))
        try:
            self._engine.add_request(str(request.id), prompt, params)
        except ValueError as error:
            raise UserError(str(error).splitlines()[0]) from error
        self._requests[request.id] = request

    def cancel(self, request_id: int) -> None:
        """Forget a request, waiting or running; nothing if it is neither."""
        if self._requests.pop(request_id, None) is not None:
            self._engine.abort_request([str(request_id)])

    def step(self) -> list[Event]:
        """Let waiting requests in, and give running ones their next token."""
        if self.is_idle:
            return []
        return [event for output in self._engine.step() for event in self._events(output)]

    def _events(self, output: "RequestOutput") -> Iterator[Event]:
        request = self._requests.get(int(output.request_id))
        if request is None:  # cancelled while its step ran
            return
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        finish: Finish | None = None
        if output.finished:
            del self._requests[request.id]
            finish = {"stop": "stop", "length": "length"}.get(str(completion.finish_reason), "cancelled")  # pyright: ignore[reportAssignmentType]
        if finish is not None and not tokens:
            yield Event(request.id, None, finish)
        for index, token in enumerate(tokens):
            yield Event(request.id, token, finish if index == len(tokens) - 1 else None)


def _cache_bytes(config: HybridConfig, plan: LayerPlan, num_slots: int, capacity: int) -> int:
    """Return what vLLM needs for as many requests of as many tokens, by how it groups caches."""
    options: dict[str, Any] = {}
    for own in plan.options:
        if isinstance(own, SlidingWindowConfig):
            options["window"] = own.window
        elif isinstance(own, MambaConfig | KimiDeltaConfig):
            names = ("state_size", "dt_rank") if isinstance(own, MambaConfig) else ("gate_rank",)
            options |= {name: getattr(own, name) for name in names}
    element: Any = config.dtype
    shape = ModelShape.from_config(config.get_text_config(), cache_bytes=element.itemsize, **options)
    groups = cache_groups(shape, plan.placement, least_block_tokens=_CPU_BLOCK_TOKENS)
    spare = _SPARE_BLOCKS * groups.num_groups * groups.layers_per_group * groups.page_bytes
    # One slot more: a prompt's new tokens lie beside the window that they leave.
    return (num_slots + 1) * groups.request_bytes(capacity) + spare


def _on_gpu() -> bool:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return not current_platform.is_cpu()
