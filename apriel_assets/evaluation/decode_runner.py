"""Decode many sequences at once from static caches, the whole step in one CUDA graph; any placement.

On a CPU, or with `graph=False`, the same step runs operation by operation. Prompts are read by the model's own forward
pass, in chunks, and what that leaves in its cache moves into the runner's buffers. How fast a step is, what it moves
and what limits it: `decode_runner_report.measure_decode`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from apriel_assets.errors import UserError
from apriel_assets.evaluation.cuda_graphs import graph_of
from apriel_assets.evaluation.decode_runner_layers import DecodeLayer, check_decodable, rotation_table
from apriel_assets.evaluation.decode_runner_mixers import Clock, static_mixer
from apriel_assets.evaluation.decoded import Decoded, cut_rows
from apriel_assets.evaluation.generation import evaluating, left_padded
from apriel_assets.evaluation.token_choice import choose_tokens, uniforms_for
from apriel_assets.hybrid.caches import native_layers
from apriel_assets.hybrid.kernels import decode

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


class DecodeRunner:
    """Holds a model, the caches of `batch_size` rows, and one step as a graph.

    The model's projections that share an input become parts of one matrix; it goes on working, but must not be moved
    to another device or dtype, nor change its placement, while the runner is used.
    """

    def __init__(
        self,
        model: "HybridForCausalLM",
        *,
        batch_size: int,
        capacity: int,
        graph: bool | None = None,
        only_timed: bool = False,
    ) -> None:
        """
        Args:
            model: a hybrid, under its active placement.
            batch_size: rows.
            capacity: most tokens of a row, prompt and completion together.
            graph: replay the step as a CUDA graph; None: on a GPU.
            only_timed: what is decoded does not matter, so there may be more tokens than the model has positions.

        Raises:
            UserError: layers that are not norm, mixer, norm, MLP as Llama's, a rotation that depends on the length,
                or more tokens than the model has positions.
        """
        if batch_size < 1 or capacity < 2:
            raise UserError(
                f"batch_size={batch_size} must be at least 1 and capacity={capacity} at least 2 tokens"
            )
        check_decodable(model, 0 if only_timed else capacity)
        self.model, self.batch_size, self.capacity = model, batch_size, capacity
        self._device = model.device
        self._decoder: Any = getattr(model.backbone, model.backbone.base_model_prefix)
        self._layers = []
        native = native_layers(model.backbone.config)
        for layer, name, own in zip(model.decoder_layers, model.placement, native, strict=True):
            mixer = cast(nn.ModuleDict, cast(Any, layer.self_attn).mixers)[name]
            window = own.sliding_window if own.is_sliding else None
            self._layers.append(DecodeLayer(layer, static_mixer(mixer, batch_size, capacity, window)))
        self.mixers = [layer.mixer for layer in self._layers]
        lengths = torch.zeros(batch_size, dtype=torch.int32, device=self._device)
        self._clock = Clock(lengths, *rotation_table(model, capacity))
        self._tokens = torch.zeros(batch_size, dtype=torch.long, device=self._device)
        self._uniforms = torch.zeros(batch_size, dtype=torch.float64, device=self._device)
        self._log_probs = torch.zeros(batch_size, device=self._device)
        self.logits = torch.zeros(0)  # `[batch, vocab]`, for the next token of every row
        self._longest = 0
        self.uses_graphs = self._device.type == "cuda" if graph is None else graph
        self._choices: dict[float, Callable[[], None]] = {}
        self._replay = self._captured(self._advance)
        if self.uses_graphs:  # the step ran once, to compile its kernels
            for buffer in (lengths, *(buffer for mixer in self.mixers for buffer in mixer.buffers())):
                buffer.zero_()

    @property
    def lengths(self) -> Tensor:
        """Tokens that each row holds, `[batch]`."""
        return self._clock.lengths

    @property
    def num_parameter_bytes(self) -> int:
        """Bytes of weights that a step reads: all but the embedding table."""
        tensors = [parameter for layer in self._layers for parameter in layer.parameters]
        tensors += [*self._decoder.norm.parameters(), *self.model.lm_head.parameters()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(mixer.cache_bytes for mixer in self.mixers)

    def held_bytes(self, length: int) -> int:
        """Return the bytes of what is in the buffers when every row holds `length` tokens."""
        return sum(mixer.held_bytes(length) for mixer in self.mixers)

    def bytes_per_step(self, length: int) -> int:
        """Return the bytes that a step moves when every row holds `length` tokens: weights, KV, states both ways."""
        return self.num_parameter_bytes + sum(mixer.bytes_per_step(length) for mixer in self.mixers)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], *, chunk_tokens: int = 8192) -> None:
        """Read one prompt a row, and set `logits` for the token after each.

        Prompts of about one length are read together, `chunk_tokens` at a time; a longer one alone, chunk by chunk.

        Raises:
            UserError: not one prompt a row, an empty one, or one that leaves no room.
        """
        lengths = [len(prompt) for prompt in prompts]
        if len(prompts) != self.batch_size or min(lengths) < 1 or max(lengths) > self.capacity:
            raise UserError(
                f"{len(prompts)} prompts of {min(lengths, default=0)} to {max(lengths, default=0)} tokens; "
                f"the runner takes {self.batch_size} of 1 to {self.capacity}"
            )
        logits: list[Tensor] = []
        with evaluating(self.model):
            start = 0
            while start < len(prompts):
                stop = start + 1
                while (
                    stop < len(prompts)
                    and max(lengths[start : stop + 1]) * (stop + 1 - start) <= chunk_tokens
                ):
                    stop += 1
                logits.append(self._read(prompts[start:stop], slice(start, stop), chunk_tokens))
                start = stop
        self._clock.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        self._longest = max(lengths)
        self._set_logits(torch.cat(logits))

    @torch.inference_mode()
    def admit(self, row: int, prompt: Sequence[int], *, chunk_tokens: int = 8192) -> None:
        """Read a prompt into one row, in the place of what it held, and set its `logits`; other rows stay."""
        with evaluating(self.model):
            last = self._read([prompt], slice(row, row + 1), chunk_tokens)
        if len(self.logits) != self.batch_size:
            self.logits = last.new_zeros(self.batch_size, last.shape[-1])
        self.logits[row] = last[0]
        self._clock.lengths[row] = len(prompt)
        self._longest = max(self._longest, len(prompt))

    @torch.inference_mode()
    def fill(self, length: int, seed: int = 0) -> None:
        """Let every row hold `length` random tokens' worth of cache, of no meaning: to time steps."""
        generator = torch.Generator(self._device).manual_seed(seed)
        for mixer in self.mixers:
            for buffer in mixer.buffers():
                buffer[0].normal_(generator=generator)
                buffer[1:] = buffer[0]  # drawing random numbers takes far longer than copying them
        self._clock.lengths.fill_(length)
        self._longest = length

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append one token a row, `[batch]`, and return `logits`, `[batch, vocab]`, a buffer of the runner."""
        self._check_room(1)
        self._tokens.copy_(tokens)
        self._replay()
        self._longest += 1
        return self.logits

    @torch.inference_mode()
    def decode(
        self, num_tokens: int, *, temperature: float = 0.0, seed: int = 0, stop_ids: Sequence[int] = (),
        draws: Tensor | None = None,
    ) -> list[Decoded]:  # fmt: skip
        """Go on from `logits` for at most `num_tokens` tokens a row; tokens are chosen on the device.

        A row's randomness depends on (seed, row) alone. Rows that have ended go on unseen until all have.

        Args:
            num_tokens: rows are cut there.
            temperature: 0 = greedy.
            seed: of the sampling.
            stop_ids: tokens that end a row.
            draws: numbers in [0, 1) that choose instead of the seed, `[batch, num_tokens]`.
        """
        self._check_room(num_tokens - 1)
        if draws is None:
            draws = uniforms_for(seed, [(row, 0) for row in range(self.batch_size)], num_tokens, temperature)
        draws = draws.to(self._device)
        tokens = torch.zeros(num_tokens, self.batch_size, dtype=torch.long, device=self._device)
        log_probs = torch.zeros(num_tokens, self.batch_size, device=self._device)
        stops = torch.tensor(list(stop_ids), dtype=torch.long, device=self._device)
        ended = torch.zeros(self.batch_size, dtype=torch.bool, device=self._device)
        self._uniforms.copy_(draws[:, 0])
        choose = self._choice(temperature)
        choose()
        for position in range(num_tokens):
            tokens[position], log_probs[position] = self._tokens, self._log_probs
            ended |= torch.isin(self._tokens, stops)
            # Looking at `ended` waits for the device; not at every token.
            last = position + 1 == num_tokens or (len(stops) and position % 8 == 7 and bool(ended.all()))
            if last:
                tokens, log_probs = tokens[: position + 1], log_probs[: position + 1]
                break
            self._replay()
            self._uniforms.copy_(draws[:, position + 1])
            choose()
        self._longest += position
        return cut_rows(tokens.T.tolist(), log_probs.T.tolist(), set(stop_ids))

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, *, temperature: float = 0.0, seed: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> list[Decoded]:  # fmt: skip
        """Read one prompt a row and decode; `prefill` and `decode` in one."""
        self.prefill(prompts)
        return self.decode(num_tokens, temperature=temperature, seed=seed, stop_ids=stop_ids)

    @torch.inference_mode()
    def rewind(self, lengths: Tensor) -> None:
        """Let rows hold `lengths` tokens, `[batch]`, again; recurrent states stay: for timing, and to empty rows."""
        self._clock.lengths.copy_(lengths)
        self._longest = int(lengths.max())

    def _read(self, prompts: Sequence[Sequence[int]], rows: slice, chunk_tokens: int) -> Tensor:
        """Prefill some rows with the model's own cache, move it over, return the last logits."""
        ids, mask = left_padded(prompts, 0, self._device)
        padded = mask if len({len(prompt) for prompt in prompts}) > 1 else None
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, output = self.model.make_cache(), cast(Any, None)
        width = max(1, chunk_tokens // len(prompts))
        for start in range(0, ids.shape[1], width):
            chunk = slice(start, start + width)
            output = self.model(
                input_ids=ids[:, chunk],
                attention_mask=None if padded is None else padded[:, : chunk.stop],
                position_ids=positions[:, chunk],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        for layer, mixer in zip(cache.layers, self.mixers, strict=True):
            mixer.load(rows, layer, [len(prompt) for prompt in prompts])
        return output.logits[:, -1]

    def _advance(self) -> None:
        """One step, `_tokens` in, `logits` out."""
        residual = self._decoder.embed_tokens(self._tokens)
        update = None
        for layer in self._layers:
            update = layer(residual, update, self._clock)
        norm = self._decoder.norm
        self._set_logits(
            self.model.lm_head(decode.add_norm(residual, update, norm.weight, norm.variance_epsilon))
        )
        self._clock.lengths.add_(1)

    def _set_logits(self, logits: Tensor) -> None:
        if self.logits.shape != logits.shape:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)

    def _choose(self, temperature: float) -> None:
        tokens, figures = choose_tokens(self.logits, temperature, self._uniforms)
        self._tokens.copy_(tokens)
        self._log_probs.copy_(figures[0])

    def _choice(self, temperature: float) -> Callable[[], None]:
        if temperature not in self._choices:
            self._choices[temperature] = self._captured(partial(self._choose, temperature))
        return self._choices[temperature]

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats `work`: itself, or its graph."""
        return graph_of(work, self._device) if self.uses_graphs else work

    def _check_room(self, num_tokens: int) -> None:
        if self._longest + num_tokens > self.capacity:
            raise UserError(
                f"{num_tokens} more tokens do not fit: rows hold up to {self._longest} of {self.capacity}; make the "
                "runner with more capacity"
            )
