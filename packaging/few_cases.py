"""A plugin of pytest that keeps the first case of each test for each kernel, for `make test-aarch64`."""

from __future__ import annotations

from typing import Any


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keeps one item for each function of a module, and for each kernel that its cases name."""
    first: dict[Any, Any] = {}
    for item in items:
        cases = item.callspec.params if hasattr(item, "callspec") else {}
        kernel = cases.get("variant", cases.get("_kernel"))  # the two names of tests/conftest.py and tests/helpers.py
        first.setdefault((item.location[0], item.originalname, kernel), item)
    kept = list(first.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
