"""What a training run does besides its task and its method; the FP32 twin gets the same, but for ``lr_fp32``."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Fields are set by a task file, and changed for one run by ``--set field=value``.

    Length: ``epochs`` for images, ``steps`` (of the optimiser) for text. ``train_size`` uses the first so many training
    images only. The learning rate rises linearly over the share ``warmup`` of all steps and falls as a cosine to
    ``lr * lr_end``; ``clip`` is a gradient norm, 0 for none. ``lr`` is that of ternary nets, ``lr_fp32`` of their twin.
    ``bf16`` trains in bfloat16 autocast; scores are of float32.

    Only ternary nets read the rest, shares of all steps again: ``quant_warmup`` (`bittorch.train.QuantWarmup`),
    ``ternary_after`` (`TernaryAfter`), ``decay_off`` (`WeightDecayOff`, at which both nets stop to decay);
    ``norm_start`` stretches the first weights (`bittorch.nn.init.norm_preserving_`);
    ``distill`` weighs the teacher's logits at ``temperature``, and ``from_fp32`` starts from the teacher's weights. The
    teacher is the trained FP32 twin of the same seed.
    """

    epochs: int = 10
    steps: int = 0
    train_size: int = 0
    batch: int = 128
    lr: float = 3e-3
    lr_fp32: float = 1e-3
    lr_end: float = 0.0
    optimizer: Literal["adam", "sgd"] = "adam"
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 0.0
    label_smoothing: float = 0.0
    norm: Literal["none", "batch"] = "none"
    bf16: bool = False
    quant_warmup: float = 0.0
    ternary_after: float = 0.0
    decay_off: float = 1.0
    norm_start: bool = False
    distill: float = 0.0
    temperature: float = 4.0
    from_fp32: bool = False

    @property
    def needs_teacher(self) -> bool:
        return self.distill > 0 or self.from_fp32


def _parse(field: dataclasses.Field, text: str) -> Any:
    kind = type(field.default)
    if kind is bool:
        return {"0": False, "1": True}[text]
    return kind(text)


def changed(recipe: Recipe, settings: list[str]) -> tuple[Recipe, str]:
    """The recipe with ``field=value`` settings, and its name: the settings, sorted, or ``default``.

    Raises:
        ValueError: an unknown field or a value of another kind.
    """
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    values = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in fields:
            raise ValueError(f"--set {setting}: there is no {name!r}; there are {', '.join(fields)}")
        try:
            values[name] = _parse(fields[name], text)
        except (ValueError, KeyError):
            kind = type(fields[name].default).__name__
            raise ValueError(f"--set {setting}: {name} must be {kind}, such as {fields[name].default!r}") from None
    name = ",".join(
        f"{key}={values[key]:g}" if isinstance(values[key], float) else f"{key}={values[key]}" for key in sorted(values)
    )
    return dataclasses.replace(recipe, **values), name or "default"


def for_fp32(recipe: Recipe) -> Recipe:
    """The recipe as the FP32 twin reads it."""
    off = Recipe()
    return dataclasses.replace(
        recipe,
        lr=recipe.lr_fp32,
        quant_warmup=off.quant_warmup,
        ternary_after=off.ternary_after,
        norm_start=off.norm_start,
        distill=off.distill,
        from_fp32=off.from_fp32,
    )
