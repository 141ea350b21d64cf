"""The recipe's `capacity` section: what planning needs of a model that it cannot look at. Changes no result."""

from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Literal

from apriel_assets.capacity.rates import DECODE_SHARE, FORWARD_MFU, TRAIN_MFU, Rates
from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape

Gpu = Literal["H100", "H200"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherShape:
    """Sizes of a teacher with Llama's layers, as its config.json has them."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int

    def __post_init__(self) -> None:
        for own in fields(self):
            if getattr(self, own.name) < 1:
                raise UserError(f"capacity.shape.{own.name}={getattr(self, own.name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"capacity.shape.num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )

    def model_shape(self, window: int, state_size: int | None = None) -> ModelShape:
        """Return the sizes that formulas use, with those of the mixers."""
        sizes = {name: value for name, value in asdict(self).items() if name != "num_layers"}
        return ModelShape(**sizes, window=window, state_size=state_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityConfig:
    """From what `apriel plan` expects the cost of a step that has no past run."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    shape: TeacherShape
    trace_tokens: int  # mean tokens of a training trace, prompt and completion together
    prompt_tokens: int = 256  # mean tokens of a prompt
    answer_tokens: int | None = None  # mean tokens of a generated completion; None: as many as allowed
    gpu: Gpu = "H100"
    train_mfu: float = TRAIN_MFU.value  # shares of the GPU's peaks, see capacity/rates.py
    forward_mfu: float = FORWARD_MFU.value
    decode_share: float = DECODE_SHARE.value

    def __post_init__(self) -> None:
        for name in ("trace_tokens", "prompt_tokens", "answer_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"capacity.{name}={value} must be at least 1")
        for name in ("train_mfu", "forward_mfu", "decode_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"capacity.{name}={getattr(self, name)} is a share of a peak: above 0, at most 1"
                )
        if self.prompt_tokens >= self.trace_tokens:
            raise UserError(
                f"capacity.trace_tokens={self.trace_tokens} must exceed prompt_tokens={self.prompt_tokens}: a trace is "
                "a prompt and its completion"
            )

    @property
    def rates(self) -> Rates:
        """The rates that these shares make on this GPU."""
        return Rates.of(
            self.gpu,
            train_mfu=self.train_mfu,
            forward_mfu=self.forward_mfu,
            decode_share=self.decode_share,
        )
