"""Text out of tokens as they come: whole characters only, nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError

# With byte fallback, a run of bytes is one text or, all of it, none: one more byte can change what came before.
_CHANGED = "Invalid prefix encountered"


class TextStream:
    """The text of one completion, as it grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        """
        Args:
            tokenizer: of the tokenizers library, as nearly all of transformers' are.
            stop: strings before which the text ends.

        Raises:
            UserError: a tokenizer that cannot decode token by token.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer; save it as tokenizer.json")
        self._tokenizer: Tokenizer = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(own for own in stop if own)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now, which may be none."""
        if self.stopped:
            return ""
        new = self._step(token)
        if not self._stop:
            return new
        text = self._held + new
        ends = [at for own in self._stop if (at := text.find(own)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max(_overlap(text, own) for own in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _step(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # the library raises nothing narrower
            if not str(error).startswith(_CHANGED):
                raise
            # What went out cannot be taken back: the text goes on after it, as of a new beginning.
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""

    def finish(self) -> str:
        """Return what was held back, once no token follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
