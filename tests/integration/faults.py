"""Allocations that fail on purpose, one by one, in torch and in the native path's numpy."""

import contextlib
import functools
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NUMPY_MODULES = (
    "worker.engines.paging.pages.np",
    "worker.engines.native.runner.np",
    "worker.engines.torch.batch.np",
    "worker.engines.sampling.sampling.np",
)
_NUMPY_ALLOCATIONS = frozenset({"arange", "array", "asarray", "empty", "repeat", "zeros"})


class Allocations:
    """Counts them, from 1, and fails those whose numbers are in ``failing``."""

    def __init__(self, failing: Container[int] = ()) -> None:
        self._failing = failing
        self.count = 0

    def one(self, error: type[Exception]) -> None:
        self.count += 1
        if self.count in self._failing:
            raise error(f"allocation {self.count}: out of memory, as the test wants it")


class _TorchAllocations(TorchDispatchMode):
    def __init__(self, allocations: Allocations) -> None:
        super().__init__()
        self._allocations = allocations

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if _allocates(function):
            self._allocations.one(torch.OutOfMemoryError)
        return result


@functools.cache
def _allocates(function: Any) -> bool:
    """Whether an operator returns memory of its own: no view, and no argument that it changed."""
    return any(returned.alias_info is None for returned in function._schema.returns)


class _Numpy:
    def __init__(self, allocations: Allocations) -> None:
        self._allocations = allocations

    def __getattr__(self, name: str) -> Any:
        if name in _NUMPY_ALLOCATIONS:
            self._allocations.one(MemoryError)
        return getattr(np, name)


@contextlib.contextmanager
def failing_allocations(failing: Container[int] = ()) -> Iterator[Allocations]:
    allocations = Allocations(failing)
    with pytest.MonkeyPatch.context() as patch, _TorchAllocations(allocations):
        for name in _NUMPY_MODULES:
            patch.setattr(name, _Numpy(allocations))
        yield allocations
