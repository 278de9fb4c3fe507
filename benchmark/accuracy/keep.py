"""The state of a training that was stopped, in a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bittorch.utils.replacement import replacing


class KeptError(Exception):
    """A state of another run."""


class Kept:
    """Saves parts of a training, and puts them back: a run that was stopped goes on where it was, bit for bit.

    The parts are everything with ``state_dict`` and ``load_state_dict``. The state of torch's random generator goes
    along. The file is replaced in one step, so a run that ends while it writes leaves the state before.

    Args:
        path: of the file; None keeps nothing.
        what: values that the run must share with the one that wrote the file, by name.
        seconds: at least so long between two states.
    """

    def __init__(self, path: Path | None, what: dict[str, Any], seconds: float = 60.0) -> None:
        self.path, self.what, self.seconds = path, what, seconds
        self.written = time.monotonic()

    @property
    def there(self) -> bool:
        return self.path is not None and self.path.exists()

    def restore(self, **parts: Any) -> dict[str, Any] | None:
        """Puts the parts back and returns the values beside them; None where there is no file.

        Raises:
            KeptError: the file is of another run; the text names what differs. No part is changed then.
        """
        if self.path is None or not self.there:
            return None
        state = torch.load(self.path, weights_only=True)
        other = {name: (state["what"].get(name), value) for name, value in self.what.items()}
        other = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
        if other:
            told = ", ".join(f"{name} was {a!r} and is {b!r}" for name, (a, b) in other.items())
            raise KeptError(f"{self.path} is of another run: {told}; take its values, or delete it to start anew")
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"])
        return state["values"]

    def save(self, values: dict[str, Any], now: bool = False, **parts: Any) -> None:
        """Writes the parts and the values, where the last state is old enough, or ``now``."""
        if self.path is None or not (now or time.monotonic() - self.written >= self.seconds):
            return
        state = {"what": self.what, "values": values, "random": torch.get_rng_state()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state["parts"] = {name: part.state_dict() for name, part in parts.items()}
        with replacing(self.path, directory=False, overwrite=True) as partial:
            torch.save(state, partial)
        self.written = time.monotonic()

    def drop(self) -> None:
        """Removes the file of a run that is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
