"""Curves of fixed probe placements while a supernet trains, so that a mixer that starves shows.

The training loss jumps with the placement that a step happens to sample. The probes stay: all-FA, each mixer
alone, a few random placements, always on the same held-out traces.
"""

from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from apriel_assets.distillation.batches import Batch, Traces
from apriel_assets.distillation.causal_lm import CausalLM, final_hidden_states, lm_head
from apriel_assets.distillation.config import SupernetConfig
from apriel_assets.distillation.losses import TeacherHead, token_divergences
from apriel_assets.distillation.mixer_outputs import mixer_errors
from apriel_assets.distillation.sampling import PlacementSampler
from apriel_assets.hybrid.placement import FULL_ATTENTION, Placement
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM

_RANDOM_PROBES_SEED = 1_000_003  # added to the run's, so that probes are no copies of its first steps


class SupernetCurves:
    """Rows of `supernet_curves`, measured whenever the trainer says that steps are done."""

    def __init__(
        self,
        supernet: "HybridForCausalLM",
        teacher: CausalLM,
        validation: Traces,
        config: SupernetConfig,
        *,
        model_name: str,
        seed: int,
    ) -> None:
        self._supernet, self._teacher, self._config = supernet, teacher, config
        self._model_name = model_name
        self._traces = validation.select(range(min(len(validation), config.probe_traces)))
        self._probes = probe_placements(supernet.mixers, config.random_probes, seed)
        self._rows: list[dict] = []
        self._reference: Tensor | None = None

    def after(self, step: int) -> None:
        """Measure if these finished steps are a point of the curves: the first, the last, every so often."""
        if step % self._config.probe_every == 0 or step == self._config.steps:
            self._rows += self._measure(step)

    def table(self) -> pa.Table:
        """Return the rows so far."""
        return to_table("supernet_curves", self._rows)

    def restore(self, table: pa.Table) -> None:
        """Go on from the rows of a run that stopped."""
        self._rows = table.to_pylist()

    @torch.no_grad()
    def _measure(self, step: int) -> list[dict]:
        supernet = self._supernet
        batch = self._traces.batch(range(len(self._traces))).to(supernet.device)
        real = batch.mask
        if self._reference is None:
            hidden = final_hidden_states(self._teacher, batch.input_ids, batch.attention_mask)
            self._reference = hidden[real]
        reference = TeacherHead(self._reference, lm_head(self._teacher))
        was_training, placement = supernet.training, supernet.placement
        supernet.eval()
        rows = []
        try:
            for probe, layers in self._probes.items():
                supernet.set_placement(layers)
                hidden = supernet.final_hidden_states(batch.input_ids, batch.attention_mask)[real]
                kl, _, _ = token_divergences(hidden, lm_head(supernet), reference)
                rows.append({"probe": probe, "placement": list(layers), "kl_nats": kl.double().mean().item()})
            rows += self._output_errors(batch)
        finally:
            supernet.set_placement(placement)
            supernet.train(was_training)
        return [{"model": self._model_name, "step": step, **row} for row in rows]

    def _output_errors(self, batch: Batch) -> list[dict]:
        self._supernet.set_placement(uniform_placement(self._supernet.mixers, FULL_ATTENTION))
        errors = mixer_errors(self._supernet, batch)
        return [{"probe": f"mixer_{name}", "output_error": error} for name, error in sorted(errors.items())]


def probe_placements(mixers: tuple[tuple[str, ...], ...], num_random: int, seed: int) -> dict[str, Placement]:
    """Return the fixed probes by name: `all_<mixer>` for each mixer, `random_0` and so on."""
    held = sorted({name for names in mixers for name in names})
    probes = {f"all_{name}": uniform_placement(mixers, name) for name in held}
    sampler = PlacementSampler(mixers, SupernetConfig(), seed + _RANDOM_PROBES_SEED)
    return probes | {f"random_{number}": sampler.placement(number) for number in range(num_random)}


def uniform_placement(mixers: tuple[tuple[str, ...], ...], mixer: str) -> Placement:
    """Return a mixer in every layer that holds it, and elsewhere full attention or else the layer's first."""

    def pick(names: tuple[str, ...]) -> str:
        return next((name for name in (mixer, FULL_ATTENTION) if name in names), names[0])

    return tuple(map(pick, mixers))
