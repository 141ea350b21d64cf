"""The commands that take a model out of the house: export, generate, serve. Arguments and what the terminal shows."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apriel_assets.errors import UserError
from apriel_assets.printable import printable

if TYPE_CHECKING:
    from apriel_assets.serving.terminal_text import Written

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where artifacts live; else $APRIEL_HOME, else ./.apriel.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        help="A checkpoint's directory, or a model of the home: h6, turbo, recipe:turbo. None: what the home releases.",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (export, generate, serve):
        app.command()(command)


def export(
    directory: Annotated[Path, typer.Argument(help="Where to write; must not exist or be empty.")],
    model: ModelOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the release is called; else its recipe's name.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a Hugging Face directory, an engine for each placement, and a stock checkpoint of its all-FA."""
    from apriel_assets.exporting import export_model
    from resources.home import find_home

    done = export_model(model, find_home(home), directory, name)
    if as_json:
        return typer.echo(json.dumps(done, indent=1))
    typer.echo(
        f"{done['directory']}: {', '.join(done['placements'])}; {done['bytes'] / 2**20:.1f} MiB on disk"
    )
    for own, cache in done["vllm_cache"].items():
        typer.echo(
            f"  {own} in vLLM: caches in {cache['groups']} groups of {cache['layers_per_group']} layers, "
            f"{cache['padding_layers']} of them padding; {cache['wasted_share']:.0%} of what a request of "
            f"{cache['context_tokens']} tokens takes is unused"
        )


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to go on from. None: read from standard input, or ask.")
    ] = None,
    model: ModelOption = None,
    placement: Annotated[
        str | None,
        typer.Option("--placement", "-p", help="By name, all-fa, or a mixer for each layer: fa,gdn,..."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Placements side by side: turbo,all-fa")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", help="Decode speculatively: this placement drafts, full attention verifies."),
    ] = None,
    num_draft_tokens: Annotated[int, typer.Option("--draft-tokens", help="Drafted at a time.")] = 4,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the chat template.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", "-n", help="None: up to 256, as the context allows.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Complete a text, or chat, with any checkpoint and placement; --compare shows several side by side."""
    if sum(option is not None for option in (placement, compare, draft)) > 1:
        raise UserError("give one of --placement, --compare and --draft")
    from apriel_assets.generating import Generator
    from apriel_assets.serving.sampling import Sampling
    from resources.home import find_home

    sampling = Sampling(max_new_tokens=max_new_tokens or 256, temperature=temperature, top_p=top_p, seed=seed)
    generator = Generator(model, find_home(home), sampling, exactly=max_new_tokens is not None, chat=chat)
    names = [own.strip() for own in compare.split(",")] if compare is not None else [placement]
    generator.check(names, draft)
    for text in _prompts(prompt):
        if compare is not None:
            found = {str(own): generator.write(text, own) for own in names}
            _print_json(found) if as_json else _print_side_by_side(found)
            continue
        show = (lambda piece: None) if as_json else _print_piece
        written = generator.write(text, placement, draft=draft, num_draft_tokens=num_draft_tokens, show=show)
        _print_end(generator.called(placement), written, as_json)


def serve(
    directory: Annotated[
        Path | None, typer.Argument(help="A release that `apriel export` wrote. None: what the home exports.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="This machine only, unless you say otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    placements: Annotated[
        str | None, typer.Option("--placements", help="Only these, separated by commas.")
    ] = None,
    slots: Annotated[
        int, typer.Option("--slots", min=1, help="Requests that an engine decodes together.")
    ] = 16,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Most tokens of prompt and answer; None: the model's positions."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each engine.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="cpu, cuda, cuda:1, of our own engines; None: cpu, or where vLLM runs."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="own, vllm, or auto: vLLM where it is installed and can.")
    ] = "auto",
    policy: Annotated[
        Path | None, typer.Option("--policy", help="YAML: tasks and most_context_tokens, for the router.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option("--api-keys", help="File with a key a line.")] = None,
    max_requests: Annotated[int, typer.Option("--max-requests", help="At once, waiting ones included.")] = 64,
    max_body_bytes: Annotated[int, typer.Option("--max-body-bytes")] = 1_000_000,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that one request may take.")] = 600.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds for open requests when the server ends.")
    ] = 30.0,
    home: HomeOption = None,
) -> None:
    """Serve a release's placements at one OpenAI-compatible endpoint, until Ctrl-C or SIGTERM."""
    _check_serve_extra()
    from apriel_assets.serving.gate import Limits
    from apriel_assets.serving.server import ServeSettings, run

    if directory is None:
        from apriel_assets.exporting import exported_by_home
        from resources.home import find_home

        directory = exported_by_home(find_home(home))
    names = tuple(own.strip() for own in placements.split(",")) if placements else ()
    settings = ServeSettings(
        directory=directory,
        host=host,
        port=port,
        placements=names,
        num_slots=slots,
        context_tokens=context,
        num_threads=threads,
        device=device,
        engine=_engine(engine),
        policy=policy,
        api_keys=api_keys,
        limits=Limits(most_requests=max_requests, most_body_bytes=max_body_bytes, most_seconds=timeout),
        grace_seconds=grace,
    )
    try:
        run(settings, on_ready=lambda text: print(text, flush=True))
    except KeyboardInterrupt:  # uvicorn raises the signal again once it has ended in order
        print("stopped")


def _engine(asked: str) -> Literal["auto", "own", "vllm"]:
    if asked not in (known := ("auto", "own", "vllm")):
        raise UserError(f"--engine {asked}: choose from {', '.join(known)}")
    return asked  # pyright: ignore[reportReturnType]


def _check_serve_extra() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UserError(f"apriel serve needs {', '.join(missing)}: pip install 'apriel-assets[serve]'")


def _prompts(given: str | None) -> Iterator[str]:
    """Yield the prompt, or what standard input has, or what a person types until they end it."""
    if given is not None:
        yield given
    elif not sys.stdin.isatty():
        yield sys.stdin.read().rstrip("\n")
    else:
        while True:
            try:
                text = input("> ")
            except EOFError:
                return
            if text.strip():
                yield text


def _print_end(name: str, written: "Written", as_json: bool) -> None:
    if as_json:
        _print_json({name: written})
    else:
        print()
        print(_figures(name, written), file=sys.stderr)


def _print_piece(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


def _figures(name: str, written: "Written") -> str:
    speed = f"{written.tokens_per_s:.1f} tokens/s" if written.tokens_per_s else "one token"
    drafted = "" if written.accepted is None else f", {written.accepted:.0%} of drafted tokens stood"
    first = f"first after {1e3 * written.first_token_s:.0f} ms"
    return f"{name}: {written.num_tokens} tokens, {speed}, {first}{drafted}"


def _print_side_by_side(found: dict[str, "Written"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*found, show_lines=True)
    table.add_row(*(Text(printable(own.text)) for own in found.values()))
    table.add_row(*(_figures("", own).removeprefix(": ") for own in found.values()))
    Console().print(table)


def _print_json(found: "dict[str, Written]") -> None:
    rows: list[dict[str, Any]] = [
        {
            "placement": name,
            "text": own.text,
            "prompt_tokens": own.num_prompt_tokens,
            "tokens": own.num_tokens,
            "first_token_s": own.first_token_s,
            "tokens_per_s": own.tokens_per_s,
            "accepted": own.accepted,
        }
        for name, own in found.items()
    ]
    typer.echo(json.dumps(rows, indent=1))
