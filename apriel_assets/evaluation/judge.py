"""A model behind an OpenAI-compatible endpoint that is asked for judgements: patient, and safe to interrupt.

Errors that pass (rate limits, overload, a connection that breaks) are asked again after a while, longer each time.
Every judgement is kept as it comes. The key is read from the environment for each run and written nowhere.
"""

import http.client
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.evaluation.kept_answers import KeptAnswers, request_keys
from apriel_assets.evaluation.lm_eval_config import JudgeConfig

logger = logging.getLogger(__name__)

_PASSES = {408, 409, 425, 429}  # and all from 500 on
_LONGEST_WAIT_S = 60.0

_MOST_ANSWER_BYTES = 1 << 24

Messages = Sequence[dict[str, str]]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Python's own would send the key on to whatever host an answer names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def check_key(config: JudgeConfig) -> None:
    """Raise UserError if the variable that should hold the judge's key does not hold one."""
    _key(config)


def _key(config: JudgeConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"the judge {config.model} needs a key: set {config.api_key_env}, or evals.judge.api_key_env=null for none"
        )
    if not (key.isascii() and key.isprintable()):  # it could not be sent, and the error would repeat it
        raise UserError(f"{config.api_key_env} holds characters that no key has; set it anew")
    return key


def judgements(
    config: JudgeConfig,
    asked: Sequence[Messages],
    *,
    kept: KeptAnswers | None = None,
    finished: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Return the judge's text on each of several conversations.

    Args:
        config: who judges.
        asked: what it is sent.
        kept: judgements of an earlier run; new ones are added.
        finished: called with how many there are.

    Raises:
        UserError: no key, an error that does not pass, or one that did not in all retries; what was judged is kept.
    """
    keys = request_keys(
        "judgement", [[config.model, config.temperature, config.max_tokens, own] for own in asked]
    )
    found: dict[str, str] = dict(kept.load()) if kept else {}
    left = [position for position, key in enumerate(keys) if key not in found]
    if left:
        check_key(config)
    problems: list[BaseException] = []

    def judged(messages: Messages) -> str | None:
        return (
            None if problems else _judgement(config, messages)
        )  # what is under way at an error is still kept

    with ThreadPoolExecutor(max_workers=config.parallel) as pool, kept or nullcontext():
        under_way = {pool.submit(judged, asked[position]): position for position in left}
        try:
            for done in as_completed(under_way):
                if error := done.exception():
                    problems.append(error)
                elif (text := done.result()) is not None:
                    key = keys[under_way[done]]
                    found[key] = text
                    if kept:
                        kept.add(key, text)
                    finished(sum(own in found for own in keys))
        except BaseException as error:  # an interrupt: nothing more is asked
            problems.append(error)
            raise
    if problems:
        raise problems[0]
    return [found[key] for key in keys]


def _judgement(config: JudgeConfig, messages: Messages) -> str:
    wait, problem = config.first_wait_s, ""
    for attempt in range(config.retries + 1):
        try:
            return _text(config, _post(config, messages))
        except urllib.error.HTTPError as error:
            problem, asked_to_wait = f"status {error.code}", error.headers.get("Retry-After")
            if error.code not in _PASSES and error.code < 500:
                raise UserError(
                    f"the judge at {config.base_url} refuses: {problem} {_said(config, error)}"
                ) from error
        except (OSError, http.client.HTTPException) as error:  # no answer, a broken connection, a time-out
            problem, asked_to_wait = str(error) or type(error).__name__, None
        if attempt < config.retries:
            pause = _seconds(asked_to_wait) or min(wait, _LONGEST_WAIT_S) * random.uniform(0.75, 1.25)
            logger.warning("the judge at %s gave %s; asked again in %.1f s", config.base_url, problem, pause)
            time.sleep(pause)
            wait *= 2
    raise UserError(
        f"the judge at {config.base_url} gave {problem} {config.retries + 1} times; what it judged is kept: run again"
    )


def _post(config: JudgeConfig, messages: Messages) -> Any:
    body = {"model": config.model, "messages": list(messages), "temperature": config.temperature}
    headers = {"Content-Type": "application/json"}
    if (key := _key(config)) is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(  # noqa: S310  the config takes http and https alone
        f"{config.base_url.rstrip('/')}/chat/completions",
        data=json.dumps(body | {"max_tokens": config.max_tokens}).encode(),
        headers=headers,
    )
    with _OPENER.open(request, timeout=config.timeout_s) as response:
        answer = response.read(_MOST_ANSWER_BYTES + 1)
    if len(answer) > _MOST_ANSWER_BYTES:
        raise UserError(f"the judge at {config.base_url} answered more than {_MOST_ANSWER_BYTES:,} bytes")
    return answer


def _text(config: JudgeConfig, answer: bytes) -> str:
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"the judge at {config.base_url} answered no chat completion: {answer[:80]!r}; check evals.judge.base_url"
        ) from error


def _said(config: JudgeConfig, error: urllib.error.HTTPError) -> str:
    """Return how an error's answer begins; where it repeats the key, without that."""
    said = " ".join(error.read(1000).decode(errors="replace").split())
    key = _key(config)
    return (said.replace(key, "(the key)") if key else said)[:200]


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, min(float(text), _LONGEST_WAIT_S)) if text else None
    except ValueError:  # a date: our own pause will do
        return None
