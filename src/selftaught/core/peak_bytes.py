"""How many bytes of tensors a computation has alive at once: counted, not sampled, on any device."""

import weakref
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@final
class PeakBytes(TorchDispatchMode):
    """While it is entered, on this thread: `now` and `peak`, bytes of storages made inside and still alive.

    Counts what the results of operations own, forward, backward and under `torch.func` transforms; a view adds
    nothing. What was there before does not count, nor does a kernel's own workspace. Every operation
    costs some microseconds more. (`saved_tensors_hooks` would be the public way, but torch 2.13 refuses
    it around `torch.func.grad`, and it does not see what a backward pass makes.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            self._note(x, made_here=False)
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            self._note(x, made_here=True)
        return out

    def _note(self, x: Any, made_here: bool) -> None:
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            return
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes() if made_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        del self._alive[key]
