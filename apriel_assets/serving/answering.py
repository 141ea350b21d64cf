"""One answer on its way out: in one piece or as events, with what it took noted for Prometheus."""

import time
from collections.abc import AsyncGenerator, AsyncIterator

from apriel_assets.serving.answers import DONE, AnswerShape, event, usage
from apriel_assets.serving.completing import Piece
from apriel_assets.serving.metrics import Metrics
from apriel_assets.serving.problems import body_of, status_of
from apriel_assets.serving.supervised_engine import EngineGoneError


class Answering:
    """One answer on its way, with its figures."""

    def __init__(
        self, metrics: Metrics, model: str, source: AsyncGenerator[Piece, None], num_prompt: int
    ) -> None:
        """
        Args:
            metrics: where figures go.
            model: as the client named it, or as the router chose.
            source: of the text; closed when the answer ends.
            num_prompt: tokens of the prompt.
        """
        self._metrics, self._model, self._source = metrics, model, source
        self._num_prompt, self._num_tokens = num_prompt, 0
        self._began = time.monotonic()
        self._first: Piece | None = None

    async def begin(self) -> None:
        """Wait for the first tokens."""
        self._first = await self._next()
        self._metrics.first_token.labels(self._model).observe(time.monotonic() - self._began)

    async def whole(self, shape: AnswerShape) -> dict:
        """Return the answer in one piece."""
        try:
            await self.begin()
            parts = [piece async for piece in self._all()]
            self._note(200)
            text = "".join(piece.text for piece in parts)
            return shape.whole(text, parts[-1].finish or "", usage(self._num_prompt, self._num_tokens))
        finally:
            await self._source.aclose()

    async def events(self, shape: AnswerShape, counted: bool) -> AsyncGenerator[bytes, None]:
        """Yield the answer as server-sent events."""
        ended = False
        try:
            if (opening := shape.first()) is not None:
                yield opening
            async for piece in self._all():
                if piece.text:
                    yield shape.part(piece.text)
                if piece.finish is not None:
                    yield shape.last(piece.finish)
            if counted:
                yield shape.usage(usage(self._num_prompt, self._num_tokens))
            yield DONE
            ended = True
            self._note(200)
        except (EngineGoneError, TimeoutError) as error:
            ended = True
            yield event(body_of(error))  # the status has gone out long ago
            self._note(status_of(error))
        finally:
            if not ended:
                self._metrics.disconnects.labels(self._model).inc()
            await self._source.aclose()

    async def _all(self) -> AsyncIterator[Piece]:
        piece, self._first = self._first, None
        assert piece is not None
        yield piece
        while piece.finish is None:
            piece = await self._next()
            yield piece

    async def _next(self) -> Piece:
        piece = await anext(self._source)
        self._num_tokens += piece.num_tokens
        return piece

    def _note(self, code: int) -> None:
        self._metrics.requests.labels(self._model, code).inc()
        self._metrics.tokens.labels(self._model, "prompt").inc(self._num_prompt)
        self._metrics.tokens.labels(self._model, "completion").inc(self._num_tokens)
        self._metrics.duration.labels(self._model).observe(time.monotonic() - self._began)
