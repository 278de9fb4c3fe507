"""The nets that are compared: `fp32`, the twin, and the ternary methods by name."""

from bittorch import TernaryQuantConfig

FP32 = "fp32"
DEFAULT = "ternary"
METHODS: dict[str, dict] = {
    FP32: {},
    DEFAULT: {},  # TernaryQuantConfig() as it is
    "a8": {"activation_bits": 8},
    "max+max": {"method": "max", "scale": "max"},
    "max+ls": {"method": "max", "scale": "ls"},
    "max+ls/a8": {"method": "max", "scale": "ls", "activation_bits": 8},
    "max+rms": {"method": "max", "scale": "rms"},
    "twn": {"method": "twn", "scale": "ls"},
    "twn+rms": {"method": "twn", "scale": "rms"},
    "absmean": {"method": "absmean", "scale": "mean"},
    "absmean/tensor": {"method": "absmean", "scale": "mean", "granularity": "tensor"},
    "absmean+ls": {"method": "absmean", "scale": "ls"},
    "absmean+rms": {"method": "absmean", "scale": "rms"},
    "optimal": {"method": "optimal", "scale": "ls"},
    "optimal+rms": {"method": "optimal", "scale": "rms"},
    "nm34": {"method": "nm34", "scale": "ls"},
    "lsq": {"method": "lsq"},
    "seq": {"method": "seq"},
    "ttq": {"method": "ttq"},
    "max+ls clipped": {"method": "max", "scale": "ls", "ste": "clipped"},
    "twn clipped": {"method": "twn", "scale": "ls", "ste": "clipped"},
}


def config_of(method: str) -> TernaryQuantConfig | None:
    """None for FP32.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return None if method == FP32 else TernaryQuantConfig(**METHODS[method])


def same_as(method: str) -> str:
    """The first method of the same configuration: those of ``max+rms``, the default, are ``ternary``."""
    config = config_of(method)
    return next(name for name in METHODS if config_of(name) == config)
