"""`bittorch bench`: tokens per second of a model, beside the same model dense in bfloat16."""

from __future__ import annotations

import argparse
import copy
import statistics
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bittorch._version import __version__
from bittorch.cli.arguments import model_options, output_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.errors import CommandError, UsageError
from bittorch.cli.model import load
from bittorch.nn import TernaryLinearInference

if TYPE_CHECKING:
    from bittorch.models import LanguageModel

Rates = dict[str, list[float]]
PHASES = ("prefill", "decode")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure prefill and decode, beside the same model dense in bfloat16",
        description="Tokens per second of prefill and decode: medians of runs that alternate with those of the same "
        "model whose ternary layers are dense and whose dtype is bfloat16.",
        parents=[model_options(), output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="of the prefill; default 512")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="of the decoding; default 64")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each model; default 5")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense model out")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("repeats", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    model = load(args, console, text=False)
    length = args.prompt_tokens + args.new_tokens
    if length > model.config.max_positions + 1:
        raise CommandError(
            f"{length} tokens outgrow the model's context of {model.config.max_positions}; ask for fewer"
        )
    if not any(isinstance(module, TernaryLinearInference) for module in model.modules()):
        console.note("no layer of the model is packed; --depth converts dense ones")
    models = {"packed": model}
    if not args.no_dense:
        models["dense bf16"] = dense_twin(model, torch.bfloat16)
    rates = _measure(models, args, console)
    _report(models, rates, args, console)
    return 0


def dense_twin(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """A copy whose packed layers are `nn.Linear` of the same weights, in one dtype; the tokenizer is shared."""
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for module in model.modules():
        if isinstance(module, TernaryLinearInference):
            dense = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            dense.weight = nn.Parameter(module.dequantized_weight(dtype), requires_grad=False)
            if module.bias is not None:
                dense.bias = nn.Parameter(module.bias.to(dtype), requires_grad=False)
            memo[id(module)] = dense.eval()
    twin: LanguageModel = copy.deepcopy(model, memo).to(dtype)
    twin.dtype = dtype
    twin.frequencies = model.frequencies  # float32 whatever the dtype
    return twin


def _measure(models: dict[str, LanguageModel], args: argparse.Namespace, console: Console) -> dict[str, Rates]:
    """Rates of each model and phase, after one run of each to warm up; the models take turns."""
    rates: dict[str, Rates] = {name: {phase: [] for phase in PHASES} for name in models}
    vocab = next(iter(models.values())).config.vocab_size
    prompt = torch.randint(vocab, (args.prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    with console.progress("runs") as progress:
        for repeat in range(args.repeats + 1):
            for index, (name, model) in enumerate(models.items()):
                stats = model.stream([prompt], max_new_tokens=args.new_tokens, ignore_eos=True).run().stats
                if repeat:
                    rates[name]["prefill"].append(stats.prefill_tokens_per_second or 0.0)
                    rates[name]["decode"].append(stats.tokens_per_second or 0.0)
                progress(repeat * len(models) + index + 1, (args.repeats + 1) * len(models))
    return rates


def _report(
    models: dict[str, LanguageModel], rates: dict[str, Rates], args: argparse.Namespace, console: Console
) -> None:
    medians = {name: {phase: statistics.median(rates[name][phase]) for phase in PHASES} for name in models}
    ratios = {phase: _ratio(rates, phase) for phase in PHASES} if len(models) > 1 else {}
    sizes = {name: _bytes(model) for name, model in models.items()}
    about = {
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        "device": str(next(iter(models.values())).device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bittorch": __version__,
    }
    measured = {
        name.replace(" ", "_"): {
            "bytes": sizes[name],
            **{f"{phase}_tokens_per_second": medians[name][phase] for phase in PHASES},
            "runs": rates[name],
        }
        for name in models
    }
    console.object({**about, "models": measured, "ratio": ratios})
    rows = [(name, size_text(sizes[name]), *(f"{medians[name][phase]:.1f}" for phase in PHASES)) for name in models]
    if ratios:
        rows.append(("packed / dense", "", *(f"{ratios[phase]:.2f}x" for phase in PHASES)))
    console.table(("model", "weights", "prefill tokens/s", "decode tokens/s"), rows)
    console.line(
        f"{args.prompt_tokens} tokens in, {args.new_tokens} out, medians of {args.repeats} runs in turns; "
        f"{about['device']}, {about['threads']} threads, torch {torch.__version__}, bittorch {__version__}"
    )


def _ratio(rates: dict[str, Rates], phase: str) -> float:
    """Median of the ratios of neighbouring runs, which see the same machine."""
    packed, dense = (rates[name][phase] for name in ("packed", "dense bf16"))
    return statistics.median(a / b if b else float("nan") for a, b in zip(packed, dense, strict=True))


def _bytes(model: nn.Module) -> int:
    """Of parameters and buffers, those in several places once."""
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(unique.values())
