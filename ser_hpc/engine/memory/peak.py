"""Measure the peak memory of a piece of work: on a GPU by its allocator, on a CPU counted tensor by tensor.

The count follows every storage from the operation that made it until nothing refers to it any more, so it knows what autograd
keeps for the backward pass as well as what lives only for a moment. What a kernel allocates for itself it does not see.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# The shape of each product, from its arguments; with `shapes_only` it is not computed.
_PRODUCTS: Mapping[Any, Callable[..., tuple[int, ...]]] = {
    _aten.mm.default: lambda a, b: (a.shape[0], b.shape[1]),
    _aten.addmm.default: lambda _, a, b, **__: (a.shape[0], b.shape[1]),
    _aten.bmm.default: lambda a, b: (*a.shape[:2], b.shape[2]),
    _aten.baddbmm.default: lambda _, a, b, **__: (*a.shape[:2], b.shape[2]),
}
_IN_PLACE = _aten.addmm_.default


def peak_bytes(work: Callable[[], object], device: torch.device, *, shapes_only: bool = False) -> int:
    """Return the most bytes that `work` has at a time, beside what there was before it.

    `shapes_only`, on a CPU: matrix products are not computed, their results are whatever stood in memory: as many bytes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        work()
        most: int = torch.cuda.max_memory_allocated(device)
        return most - before
    count = _Count(shapes_only)
    with count:
        work()
    counted: int = count.most
    return counted


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors of every operation below autograd."""

    def __init__(self, shapes_only: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._shapes_only = shapes_only
        self._known: dict[int, weakref.ref[Any]] = {}  # storages, by their address

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, 0)  # not known yet: it was there before
        if self._shapes_only and func is _IN_PLACE:
            return args[0]
        shape = _PRODUCTS.get(func) if self._shapes_only else None
        out = args[-1].new_empty(shape(*args, **kwargs)) if shape else func(*args, **kwargs)
        for tensor in _tensors(out):
            self._note(tensor, tensor.untyped_storage().nbytes())
        return out

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return

        def freed(_: object) -> None:
            del self._known[address]
            self._now -= size

        self._known[address] = weakref.ref(storage, freed)
        self._now += size
        self.most = max(self.most, self._now)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
