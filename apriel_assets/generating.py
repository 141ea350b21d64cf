"""`apriel generate`: one model, loaded once, and prompts that it answers under one placement or several."""

from collections.abc import Sequence
from pathlib import Path

from apriel_assets.chosen_model import find_model, pick_placement
from apriel_assets.serving.prompts import chat_prompt, completion_prompt
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.speculative import SpeculativeDecoder
from apriel_assets.serving.terminal_text import Show, Written, fitted, write


class Generator:
    """Answers prompts, one at a time; in a chat, each with all that came before."""

    def __init__(
        self, model: str | None, home: Path, sampling: Sampling, *, exactly: bool, chat: bool
    ) -> None:
        """
        Args:
            model: as `find_model` takes it.
            home: where it is looked up.
            sampling: how tokens are chosen.
            exactly: whether `max_new_tokens` was asked for, so that fewer will not do.
            chat: whether prompts are messages of a conversation.

        Raises:
            UserError: no such model, or it cannot be read.
        """
        self._found = find_model(model, home)
        self._model, self._tokenizer = self._found.load()
        self._default = self._model.placement
        self._sampling, self._exactly, self._chat = sampling, exactly, chat
        self._said: dict[str | None, list[dict[str, str]]] = {}

    def called(self, placement: str | None) -> str:
        """Return what to call an answer's origin."""
        return placement or self._found.name

    def check(self, placements: Sequence[str | None], draft: str | None) -> None:
        """Check that every placement can run, before any does.

        Raises:
            UserError: an unknown one, or a mixer that a layer does not hold.
        """
        for own in placements:
            self._pick(own)
        if draft is not None:
            SpeculativeDecoder(self._model, pick_placement(self._model, draft))

    def write(
        self,
        text: str,
        placement: str | None,
        *,
        draft: str | None = None,
        num_draft_tokens: int = 4,
        show: Show = lambda text: None,
    ) -> Written:
        """Answer a prompt.

        Raises:
            UserError: a prompt beyond the context.
        """
        said = self._said.setdefault(placement, [])
        if self._chat:
            prompt = chat_prompt(self._tokenizer, [*said, {"role": "user", "content": text}])
        else:
            prompt = completion_prompt(self._tokenizer, text)
        self._model.set_placement(self._pick(placement))
        sampling = fitted(self._model, prompt, self._sampling, exactly=self._exactly)
        drafting = None
        if draft is not None:
            drafting = SpeculativeDecoder(
                self._model, pick_placement(self._model, draft), num_draft_tokens=num_draft_tokens
            )
        written = write(self._model, self._tokenizer, prompt, sampling, show=show, drafting=drafting)
        said += [{"role": "user", "content": text}, {"role": "assistant", "content": written.text}]
        return written

    def _pick(self, placement: str | None):
        if placement is None:
            return self._default
        return pick_placement(self._model, placement)
