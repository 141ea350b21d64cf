"""Greedy answers of vLLM, one JSON line for each engine directory: its tokens and cache groups, or why not.

`python -m tests.serving.vllm_answers REQUEST.json`, the request as `{"directories", "prompts", "max_tokens"}`. A vLLM
engine cannot leave its process, so each has a child of this one, which has imported vLLM before it forks.
"""

import json
import os
import sys
import traceback
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

CACHE_BYTES = 2**28
STEP_TOKENS = 16  # so that longer prompts are read in several steps, beside requests that decode


def answer(directory: str, prompts: list[list[int]], max_tokens: int) -> dict:
    llm = LLM(
        directory, dtype="float32", enforce_eager=True, max_model_len=192, max_num_seqs=4,
        max_num_batched_tokens=STEP_TOKENS, kv_cache_memory_bytes=CACHE_BYTES,
    )  # fmt: skip
    done = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    config = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
    groups = [
        (len(group.layer_names), group.kv_cache_spec.block_size, group.kv_cache_spec.page_size_bytes)
        for group in config.kv_cache_groups
    ]
    return {"tokens": [list(own.outputs[0].token_ids) for own in done], "groups": groups}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    for directory in request["directories"]:
        if (child := os.fork()) == 0:
            try:
                found = answer(directory, request["prompts"], request["max_tokens"])
            except Exception as error:
                traceback.print_exc()
                found = {"error": str(error)}
            print(json.dumps({"directory": directory, **found}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
