"""What the endpoint takes: OpenAI's completion requests, and a policy of ours. Anything else is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Would change the answer, and is not done here: better refused than ignored. Off values are let through.
_NOT_DONE = (
    "tools", "tool_choice", "functions", "function_call", "response_format", "logit_bias", "logprobs", "top_logprobs",
    "presence_penalty", "frequency_penalty", "suffix", "echo", "audio", "modalities",
)  # fmt: skip
_OFF = (None, 0, False, "none", [], {"type": "text"})
_MOST_STOPS = 8
# Each token's text is looked through for the beginning of a stop string, which takes the square of its length.
StopString = Annotated[str, Field(max_length=256)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class PolicyRequest(BaseModel):
    """What the router goes by."""

    model_config = ConfigDict(extra="forbid")

    latency_ms_per_token: float | None = Field(None, gt=0)
    task: str | None = Field(None, max_length=64)


class GenerationRequest(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=256)
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    policy: PolicyRequest | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in _NOT_DONE:
                if values.get(name) not in _OFF:
                    raise ValueError(f"{name} is not supported here; leave it out")
        return values

    @property
    def stops(self) -> list[str]:
        """The strings before which the text ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def most_tokens(self) -> int | None:
        """How many tokens were asked for."""
        raise NotImplementedError


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[int] | Annotated[list[str], Field(min_length=1, max_length=1)]
    max_tokens: int = Field(16, ge=1)  # OpenAI's default

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens


class TextPart(BaseModel):
    """One part of a message; only text is read here."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content")
    @classmethod
    def _join(cls, value: str | list[TextPart]) -> str:
        return value if isinstance(value, str) else "".join(part.text for part in value)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
