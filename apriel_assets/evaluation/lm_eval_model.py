"""Our models as a model of EleutherAI's lm-evaluation-harness: `lm_eval --model apriel`.

Prompts, tokenisation and chat templates are the harness's own (its HFLM), so a hybrid is measured exactly as any
transformers model is. Ours is how requests are answered: log-likelihoods with shared prefills and logits of scored
positions only, generation in batches from which finished rows leave, and answers kept as they come.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval import utils as harness
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.kept_answers import KeptAnswers, request_keys
from apriel_assets.evaluation.lm_eval_generation import Wanted, complete
from apriel_assets.evaluation.lm_eval_loading import (
    answers_scope,
    load_for_harness,
    say_errors_in_one_line,
    show_bar,
)
from apriel_assets.evaluation.log_likelihoods import Request, log_likelihoods
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.progress import Progress, silent

# What the model reads at once, unless a batch size is given: as much as keeps it busy.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Settings of a generation that ours knows, or that mean nothing to greedy decoding.
_OURS = {"do_sample", "temperature"}
_MOOT_IF_GREEDY = {"top_p", "top_k", "min_p"}

HFLM: Any = huggingface.HFLM  # the harness's decorator hides its type

Done = Callable[[int, Any], None]
"""Called with a request's position and its answer."""


class AprielLM(HFLM):
    """Any checkpoint of ours under one of its placements, or any causal LM of transformers."""

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        placement: str | Sequence[str] | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        device: str | None = None,
        dtype: str = "auto",
        revision: str | None = None,
        kept: str | KeptAnswers | None = None,
        seed: int = 0,
        progress: Progress = silent,
        **prompting: Any,
    ) -> None:
        """
        Args:
            pretrained: a checkpoint's directory, a hub id, or a model in memory.
            placement: a name, or a layer map: mixers, or letters as in FFMMFF; None: the active one.
            tokenizer: where the checkpoint has none; another one than its own is refused.
            batch_size: rows at once; None, "auto" or 1, lm-eval's default: as many as keep the device busy.
            max_batch_size: not used; lm-eval gives it.
            max_length: positions of the model to use; None: all that it has.
            truncation: cut contexts that do not fit on the left, as HFLM does; False: refuse them.
            device: None: a GPU if there is one.
            dtype: of the weights; "auto": the checkpoint's.
            revision: of a hub id.
            kept: a directory in which answers are kept for a run that goes on; None: they are not.
            seed: of sampled generation.
            progress: called with answered and all requests.
            prompting: HFLM's settings of prompts: add_bos_token, prefix_token_id, enable_thinking and its like.

        Raises:
            UserError: what is wrong with the model, its placement or its tokenizer; an unknown setting.
        """
        allowed = {
            "add_bos_token",
            "prefix_token_id",
            "enable_thinking",
            "think_end_token",
            "chat_template_args",
        }
        if unknown := sorted(set(prompting) - allowed):
            raise UserError(f"model_args has {unknown[0]!r}, which apriel does not know; see docs/lm-eval.md")
        model, own = load_for_harness(
            pretrained, placement, tokenizer, device=device, dtype=dtype, revision=revision
        )
        is_auto = batch_size in (None, 1, "1") or str(batch_size).startswith("auto")
        self._rows = None if is_auto else int(str(batch_size))
        prompting |= {"max_length": max_length, "truncation": truncation}
        super().__init__(pretrained=model, tokenizer=own, batch_size=self._rows or 16, **prompting)
        self._seed, self._progress = seed, progress
        # The harness encodes a question's context anew for each of its choices.
        self._context_ids = lru_cache(maxsize=8)(super().tok_encode)
        self._kept: KeptAnswers | None = None
        if isinstance(kept, KeptAnswers):
            self._kept = kept
        elif kept is not None:
            scope = answers_scope(pretrained, model, self.tokenizer, seed=seed, max_length=self.max_length)
            self._kept = KeptAnswers(Path(kept), scope)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "AprielLM":
        """Make it by name, as lm-eval's command line does: progress is shown, what a user did wrong is one line."""
        say_errors_in_one_line()
        return super().create_from_arg_obj({"progress": show_bar(), **arg_dict}, additional_config)

    @property
    def max_length(self) -> int:
        """Positions of the model: a hybrid has them in its backbone's config."""
        own = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return self._max_length or own or super().max_length

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        own = self._context_ids(context)
        return own, self.tok_encode(context + continuation)[len(own) :]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is what the model would write."""
        if self.enable_thinking:
            raise UserError(
                "enable_thinking goes with tasks that generate; this one compares log-likelihoods"
            )

        def answer(left: Sequence[Instance], done: Done) -> None:
            self._score([self._tokens(*request.args) for request in left], done)

        found = self._answered("loglikelihood", requests, answer)
        return [(float(total), bool(is_greedy)) for total, is_greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the model allows."""

        def answer(left: Sequence[Instance], done: Done) -> None:
            windows = [self._windows(request.args[0]) for request in left]
            missing, sums = [len(own) for own in windows], [0.0] * len(left)
            owners = [text for text, own in enumerate(windows) for _ in own]

            def window_done(position: int, value: tuple[float, bool]) -> None:
                text = owners[position]
                sums[text], missing[text] = sums[text] + value[0], missing[text] - 1
                if not missing[text]:
                    done(text, sums[text])

            self._score([window for own in windows for window in own], window_done)
            for text, own in enumerate(windows):
                if not own:
                    done(text, 0.0)

        return [float(total) for total in self._answered("loglikelihood_rolling", requests, answer)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to the first of its stop strings."""

        def answer(left: Sequence[Instance], done: Done) -> None:
            groups: dict[str, list[int]] = {}
            for position, request in enumerate(left):
                groups.setdefault(json.dumps(list(request.args)[1], sort_keys=True), []).append(position)
            for positions in groups.values():
                self._generate(
                    [left[position] for position in positions],
                    lambda i, text, at=positions: done(at[i], text),
                )

        return self._answered("generate_until", requests, answer)

    def _answered(
        self, kind: str, requests: Sequence[Instance], answer: Callable[[Sequence[Instance], Done], None]
    ) -> list[Any]:
        """Return all answers: those that were kept, and those that `answer` makes, kept as they come."""
        keys = request_keys(kind, [request.args for request in requests])
        known: Mapping[str, Any] = self._kept.load() if self._kept else {}
        found = {key: known[key] for key in keys if key in known}
        left = [position for position, key in enumerate(keys) if key not in found]

        def done(position: int, value: Any) -> None:
            key, request = keys[left[position]], requests[left[position]]
            found[key] = value
            if self._kept:
                self._kept.add(key, value)
            self.cache_hook.add_partial(kind, request.args, value)
            self._progress(len(found), len(requests))

        if left:
            with self._kept or nullcontext():
                answer([requests[position] for position in left], done)
        return [found[key] for key in keys]

    def _score(self, requests: Sequence[tuple[list[int], list[int]]], done: Done) -> None:
        """Score contexts and continuations, given as token ids."""
        if not isinstance(self.model, HybridForCausalLM):
            tokens = [(None, *request) for request in requests]
            for position, value in enumerate(self._loglikelihood_tokens(tokens, disable_tqdm=True)):
                done(position, value)
            return
        log_likelihoods(
            self.model,
            [self._request(context, continuation) for context, continuation in requests],
            max_tokens=_BATCH_TOKENS.get(self.model.device.type, _BATCH_TOKENS["cpu"]),
            max_rows=self._rows,
            answered=done,
        )

    def _tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[0] == self.prefix_token_id else ([self.prefix_token_id], ids)

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        most = self.max_length + 1  # the last token is only predicted
        if len(context) + len(continuation) > most:
            if not self.truncation or len(continuation) >= most:
                raise UserError(
                    f"a request of {len(context)} + {len(continuation)} tokens is longer than the model's "
                    f"{self.max_length} positions; give fewer examples (num_fewshot), or truncation=True"
                )
            context = context[len(continuation) - most :]
        return Request(tuple(context), tuple(continuation))

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows = harness.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [harness.make_disjoint_window(window) for window in windows]

    def _generate(self, requests: Sequence[Instance], done: Done) -> None:
        """Complete contexts that have the same generation settings."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(list(requests[0].args)[1], self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(settings.pop("until", None), eos=eos)
        most, temperature = settings.pop("max_gen_toks"), float(settings.get("temperature") or 0.0)
        known = _OURS if temperature else _OURS | _MOOT_IF_GREEDY
        if set(settings) - known or not isinstance(self.model, HybridForCausalLM):
            for position, text in enumerate(super().generate_until(list(requests), disable_tqdm=True)):
                done(position, text)
            return
        # A sample's randomness hangs on its request alone, so that a run that goes on draws what it would have drawn.
        keys = request_keys("sample", [request.args for request in requests])
        complete(
            self.model,
            self.tokenizer,
            [self._prompt(request.args[0], most) for request in requests],
            [zlib.crc32(key.encode()) for key in keys],
            Wanted(max_new_tokens=most, temperature=temperature, stop_strings=tuple(until), seed=self._seed),
            rows=self._rows,
            done=lambda position, tokens: done(position, self._cut(tokens, until)),
        )

    def _cut(self, token_ids: list[int], until: list[str]) -> str:
        """Return generated text as the harness wants it: before the first stop string, after the thoughts."""
        end = self.think_end_token
        if isinstance(end, int) and end in token_ids:
            token_ids = token_ids[len(token_ids) - token_ids[::-1].index(end) :]
        text: str = self.tok_decode(token_ids)
        text = text.lstrip() if isinstance(end, int) and len(text) else text
        return postprocess_generated_text(text, until, end if isinstance(end, str) else None)

    def _prompt(self, context: str, most: int) -> list[int]:
        bos: str | None = getattr(self.tokenizer, "bos_token", None)
        special = False if has_bos_prefix(context, bos) else self.add_bos_token
        ids = list(
            self.tokenizer(context, **({} if special is None else {"add_special_tokens": special})).input_ids
        )
        room = self.max_length - most
        if len(ids) > room:
            if not self.truncation or room < 1:
                raise UserError(
                    f"a context of {len(ids)} tokens and {most} to write are more than the model's "
                    f"{self.max_length} positions; give fewer examples, a lower max_gen_toks, or truncation=True"
                )
            ids = ids[-room:]
        return ids
