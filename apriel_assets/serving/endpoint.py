"""One OpenAI-compatible endpoint over the engines of a release.

Each placement is a model name, and one more name leaves the choice to the policy. No text of a request or an answer is
logged, counted or kept.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.serving.answering import Answering
from apriel_assets.serving.answers import AnswerShape, Kind
from apriel_assets.serving.api_requests import ChatRequest, CompletionRequest, GenerationRequest
from apriel_assets.serving.completing import EventStream, Work, or_disconnected, pieces
from apriel_assets.serving.gate import Gate, Limits
from apriel_assets.serving.metrics import Metrics
from apriel_assets.serving.problems import HANDLERS
from apriel_assets.serving.prompts import chat_prompt, completion_prompt, room_for
from apriel_assets.serving.release import Release
from apriel_assets.serving.routing import RoutingPolicy, Wanted, choose_placement, expected_ms_per_token
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.supervised_engine import EngineGoneError, SupervisedEngine


@dataclass(frozen=True, kw_only=True)
class ServedText:
    """What turns text into tokens and back, the same for all engines of a release."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    context_tokens: int  # most tokens of prompt and answer


class Endpoint:
    """Answers requests; `app` is the ASGI application."""

    def __init__(
        self,
        release: Release,
        engines: Sequence[SupervisedEngine],
        text: ServedText,
        *,
        policy: RoutingPolicy,
        limits: Limits,
        api_keys: Sequence[str] = (),
        only_local: bool = False,
    ) -> None:
        """
        Args:
            release: names the models.
            engines: one for each placement.
            text: tokenizer, stop tokens, context.
            policy: of the router.
            limits: of a request, and of all.
            api_keys: as `Gate` takes them.
            only_local: as `Gate` takes it.

        Raises:
            UserError: a policy that names other placements.
        """
        policy.check(release.placements)
        self._release, self._text, self._policy = release, text, policy
        self._engines = {engine.name: engine for engine in engines}
        self._gate = Gate(limits, api_keys, only_local=only_local)
        self._metrics = Metrics(engines)
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{model}", self._model),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for engine in self._engines.values():
                await engine.stop()

    async def _health(self, request: Request) -> Response:
        states = {}
        for name, own in self._engines.items():
            states[name] = {"state": own.state, "restarts": own.num_restarts, "problem": own.problem}
        ready = [own.is_ready for own in self._engines.values()]
        status = "ok" if all(ready) else "degraded" if any(ready) else "down"
        return JSONResponse({"status": status, "engines": states}, 200 if any(ready) else 503)

    async def _show_metrics(self, request: Request) -> Response:
        self._gate.check(request)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        self._gate.check(request)
        names = [*self._release.models, self._release.router]
        return JSONResponse({"object": "list", "data": [_model_entry(name) for name in names]})

    async def _model(self, request: Request) -> Response:
        self._gate.check(request)
        name = request.path_params["model"]
        self._check_model(name)
        return JSONResponse(_model_entry(name))

    async def _complete(self, request: Request) -> Response:
        asked = CompletionRequest.model_validate_json(await self._gate.body(request))
        return await self._answer(request, asked, lambda: self._completion_tokens(asked.prompt), "completion")

    def _completion_tokens(self, prompt: str | list[int] | list[str]) -> list[int]:
        tokenizer = self._text.tokenizer
        if isinstance(prompt, str):
            return completion_prompt(tokenizer, prompt)
        if prompt and isinstance(prompt[0], str):
            return completion_prompt(tokenizer, prompt[0])
        tokens = [token for token in prompt if isinstance(token, int)]
        if not all(0 <= token < len(tokenizer) for token in tokens):
            raise UserError(f"prompt: token ids are 0 to {len(tokenizer) - 1}")
        return tokens

    async def _chat(self, request: Request) -> Response:
        asked = ChatRequest.model_validate_json(await self._gate.body(request))
        messages = [{"role": own.role, "content": str(own.content)} for own in asked.messages]
        return await self._answer(request, asked, lambda: chat_prompt(self._text.tokenizer, messages), "chat")

    async def _answer(
        self, request: Request, asked: GenerationRequest, tokens: Callable[[], list[int]], kind: Kind
    ) -> Response:
        self._check_model(asked.model)
        leave = self._gate.enter()
        model = None
        try:
            # Not in the event loop: a megabyte of text takes seconds, and everybody else would wait for it.
            work, placement = self._work(asked, await asyncio.to_thread(tokens))
            model = f"{self._release.name}-{placement}"
            answering = Answering(self._metrics, model, pieces(work, self._text.tokenizer), len(work.prompt))
            shape = AnswerShape(kind, model)
            if not asked.stream:
                return JSONResponse(await or_disconnected(request, answering.whole(shape)))
            # The first tokens are waited for, so that an engine that is gone can still be told by the status.
            await or_disconnected(request, answering.begin())
            counted = asked.stream_options is not None and asked.stream_options.include_usage
            stream = EventStream(answering.events(shape, counted), leave)
            leave = lambda: None  # noqa: E731  the stream leaves
            return stream
        except ClientDisconnect:
            if model is not None:
                self._metrics.disconnects.labels(model).inc()
            raise
        finally:
            leave()

    def _work(self, asked: GenerationRequest, prompt: list[int]) -> tuple[Work, str]:
        """Return what is to be done for a request, and the placement that does it."""
        room = room_for(len(prompt), self._text.context_tokens, asked.most_tokens)
        placement = self._placement_for(asked, len(prompt) + (asked.most_tokens or 0))
        sampling = Sampling(
            max_new_tokens=room,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        )
        work = Work(
            engine=self._engines[placement],
            prompt=prompt,
            sampling=sampling,
            stop_ids=self._text.stop_ids,
            stops=asked.stops,
            seconds=self._gate.limits.most_seconds,
        )
        return work, placement

    def _placement_for(self, asked: GenerationRequest, num_tokens: int) -> str:
        if asked.model != self._release.router:
            return self._release.models[asked.model]
        policy = asked.policy
        wanted = Wanted(
            num_tokens=num_tokens,
            latency_ms_per_token=policy.latency_ms_per_token if policy else None,
            task=policy.task if policy else None,
        )
        chosen = choose_placement(
            wanted,
            self._policy,
            self._release.placements,
            ready=[name for name, own in self._engines.items() if own.is_ready],
            ms_per_token=self._speeds(num_tokens),
        )
        if chosen is None:
            raise EngineGoneError("all")
        self._metrics.routed.labels(chosen).inc()
        return chosen

    def _speeds(self, num_tokens: int) -> dict[str, float]:
        """Return what each placement takes for a token, ms: as seen lately, else as measured before release."""
        found = {}
        for name, engine in self._engines.items():
            seen = engine.seconds_per_token
            expected = expected_ms_per_token(self._release.throughput.get(name, ()), num_tokens)
            if (own := 1000 * seen if seen is not None else expected) is not None:
                found[name] = own
        return found

    def _check_model(self, name: str) -> None:
        names = [*self._release.models, self._release.router]
        if name not in names:
            raise HTTPException(404, f"no model {name[:80]!r}; there are {', '.join(names)}")


def _model_entry(name: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": "apriel_assets"}
