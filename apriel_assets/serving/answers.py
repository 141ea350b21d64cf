"""What the endpoint gives back, in OpenAI's shapes."""

import json
import time
import uuid
from typing import Any, Literal

Kind = Literal["chat", "completion"]


class AnswerShape:
    """The envelope of one answer: its id, kind, model."""

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind, self._model = kind, model
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """Return an answer that is not streamed."""
        if self._kind == "chat":
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": text}
        choice |= {"index": 0, "finish_reason": finish, "logprobs": None}
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        return {**self._envelope(name), "choices": [choice], "usage": usage}

    def first(self) -> bytes | None:
        """Return the event that opens a stream, if there is one."""
        return self._event({"role": "assistant", "content": ""}, None) if self._kind == "chat" else None

    def part(self, text: str) -> bytes:
        """Return the event for more text."""
        return self._event({"content": text} if self._kind == "chat" else text, None)

    def last(self, finish: str) -> bytes:
        """Return the event that says how the text ended."""
        return self._event({} if self._kind == "chat" else "", finish)

    def usage(self, counts: dict[str, int]) -> bytes:
        """Return the event that counts tokens."""
        return event({**self._envelope(self._stream_name), "choices": [], "usage": counts})

    def _event(self, content: Any, finish: str | None) -> bytes:
        key = "delta" if self._kind == "chat" else "text"
        choice = {"index": 0, key: content, "finish_reason": finish, "logprobs": None}
        return event({**self._envelope(self._stream_name), "choices": [choice]})

    @property
    def _stream_name(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat" else "text_completion"

    def _envelope(self, name: str) -> dict[str, Any]:
        return {"id": self._id, "object": name, "created": self._created, "model": self._model}


DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """Return the token counts of an answer."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
