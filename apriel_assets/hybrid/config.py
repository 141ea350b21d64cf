"""Options of the mixers, as recipe keys. No torch here: recipes import this."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class FullAttentionConfig:
    """Nothing to choose: the mixer is the teacher's own attention module."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindowConfig:
    """Attention that sees the current token and the `window - 1` before it."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    window: int = 64  # tokens

    def __post_init__(self) -> None:
        if self.window < 2:
            raise UserError(f"swa.window={self.window} must be at least 2 tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaConfig:
    """Mamba-1 with grouped heads, and how it starts."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    state_size: int | None = None  # state per channel; None: the attention's head size
    conv_size: int = 4  # tokens that the causal convolution sees, the current one included
    dt_rank: int | None = None  # width of the step size's bottleneck; None: hidden size / 16, rounded up
    decay: Literal["spread", "constant"] = "spread"  # A at start: -1 ... -state_size, or -1 for every state
    dt_min: float = 0.001  # step sizes at start are log-uniform in this range, one per channel
    dt_max: float = 0.1
    # Size of the output at start over that of the attention it replaces, root mean square on calibration
    # tokens;
    # None: as it comes. One factor on out_proj: the other copied weights stay as they are.
    output_scale: float | None = 0.3
    kernel: Literal["auto", "torch", "mamba_ssm"] = "auto"  # auto: mamba-ssm's on a GPU where it is installed

    def __post_init__(self) -> None:
        _check_kernel("mamba", self.kernel, ("auto", "torch", "mamba_ssm"))
        for name in ("state_size", "dt_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"mamba.{name}={value} must be positive, or null for the default")
        if self.conv_size < 2:
            raise UserError(f"mamba.conv_size={self.conv_size} must be at least 2 tokens")
        if self.output_scale is not None and self.output_scale <= 0:
            raise UserError(f"mamba.output_scale={self.output_scale} must be positive, or null for none")
        if not 0 < self.dt_min <= self.dt_max:
            raise UserError(f"mamba: need 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaNetConfig:
    """Gated DeltaNet (GDN): delta rule with one decay per head, and how it starts."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    conv_size: int = 4  # tokens that the causal convolution sees, the current one included
    # Decay at start, nats per token, log-even over the heads: exp(-rate) of the state is left after a token.
    rate_min: float = 0.0001
    rate_max: float = 0.01
    output_scale: float | None = 0.3  # as Mamba's
    # auto: flash-linear-attention's in 16 bits on a GPU where it is installed
    kernel: Literal["auto", "torch", "fla"] = "auto"

    def __post_init__(self) -> None:
        _check_delta("gdn", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class KimiDeltaConfig:
    """Kimi Delta Attention (KDA): delta rule with one decay per key channel, and how it starts."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    conv_size: int = 4  # tokens that the causal convolution sees, the current one included
    gate_rank: int | None = None  # width of the bottlenecks of decay and output gate; None: the head size
    # Decay at start, nats per token, log-even over each head's key channels.
    rate_min: float = 0.0001
    rate_max: float = 0.01
    output_scale: float | None = 0.3  # as Mamba's
    kernel: Literal["auto", "torch", "fla"] = "auto"  # as GDN's

    def __post_init__(self) -> None:
        _check_delta("kda", self)
        # Even: the bottlenecks start as pairs that cancel, so that gates are constant and yet learn at once.
        if self.gate_rank is not None and (self.gate_rank < 2 or self.gate_rank % 2):
            raise UserError(f"kda.gate_rank={self.gate_rank} must be even and positive, or null")


def _check_kernel(name: str, kernel: str, known: tuple[str, ...]) -> None:
    if kernel not in known:
        raise UserError(f"{name}.kernel={kernel!r} is unknown; choose from {', '.join(known)}")


def _check_delta(name: str, options: GatedDeltaNetConfig | KimiDeltaConfig) -> None:
    _check_kernel(name, options.kernel, ("auto", "torch", "fla"))
    if options.conv_size < 2:
        raise UserError(f"{name}.conv_size={options.conv_size} must be at least 2 tokens")
    if options.output_scale is not None and options.output_scale <= 0:
        raise UserError(f"{name}.output_scale={options.output_scale} must be positive, or null for none")
    if not 0 < options.rate_min <= options.rate_max:
        raise UserError(
            f"{name}: need 0 < rate_min <= rate_max, got {options.rate_min} and {options.rate_max}"
        )


MixerConfig = FullAttentionConfig | SlidingWindowConfig | GatedDeltaNetConfig | KimiDeltaConfig | MambaConfig

_CONFIGS: dict[str, type[MixerConfig]] = {
    "fa": FullAttentionConfig,
    "swa": SlidingWindowConfig,
    "gdn": GatedDeltaNetConfig,
    "kda": KimiDeltaConfig,
    "mamba": MambaConfig,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerOptions:
    """The options that new mixers are built with, one field per mixer."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    swa: SlidingWindowConfig = field(default_factory=SlidingWindowConfig)
    gdn: GatedDeltaNetConfig = field(default_factory=GatedDeltaNetConfig)
    kda: KimiDeltaConfig = field(default_factory=KimiDeltaConfig)
    mamba: MambaConfig = field(default_factory=MambaConfig)


def pick_options(options: MixerOptions | Mapping[str, Any] | None, mixer: str) -> MixerConfig:
    """Return one mixer's options out of all.

    Args:
        options: as an object, or by mixer as config objects or plain dicts; what is left out has its
            defaults.
        mixer: which.

    Raises:
        UserError: a mixer that no layer can be converted to, or options that it does not have.
    """
    convertible = [f.name for f in fields(MixerOptions)]
    given = options if isinstance(options, Mapping) else {}
    if unknown := [name for name in (*given, mixer) if name not in convertible]:
        raise UserError(f"cannot convert to {unknown[0]!r}; choose from {', '.join(convertible)}")
    if not isinstance(options, Mapping):
        return getattr(options or MixerOptions(), mixer)
    picked = options.get(mixer, {})
    if isinstance(picked, Mapping):
        return config_from_dict(mixer, dict(picked))
    if not isinstance(picked, _CONFIGS[mixer]):
        raise UserError(
            f"options of {mixer!r} must be {_CONFIGS[mixer].__name__} or a dict, got {type(picked).__name__}"
        )
    return picked


def config_to_dict(config: MixerConfig) -> dict[str, Any]:
    """Return the options as JSON-ready values, for the model's config.json."""
    return asdict(config)


def config_from_dict(mixer: str, values: dict[str, Any]) -> MixerConfig:
    """Read what `config_to_dict` wrote.

    Raises:
        UserError: unknown mixer or option.
    """
    if mixer not in _CONFIGS:
        raise UserError(f"unknown mixer {mixer!r}; known: {', '.join(_CONFIGS)}")
    try:
        return _CONFIGS[mixer](**values)
    except TypeError as error:
        raise UserError(f"options of mixer {mixer!r}: {error}") from error
