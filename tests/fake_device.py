"""A pretended GPU: tensors that compute on the CPU and insist that they lie elsewhere.

``with FakeDevice("cuda"):`` makes ``.to("cuda")``, ``torch.zeros(…, device="cuda")`` and every operation on such
tensors work on a machine without a GPU, and fail where a real one would fail: CPU and GPU tensors in one operation,
``.numpy()`` on the device, float64 on ``mps``. Numbers are those of the CPU, bit for bit. ``transfers`` counts what
came back to the host, each of which makes a real GPU wait.

A notebook whose kernel calls ``become`` first runs on it; ``MTL_PRETEND=cuda python -m pytest -k solved`` runs them so.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)  # the operations that may see both places
MASKS = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
)  # positions may come from the host


class Elsewhere(Tensor):
    """A tensor on the pretended device; ``held`` holds its numbers. To torch itself it lies on ``meta``."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.size(), device="meta", **layout)
        made.held, made.place = held, place
        return made

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")
    is_meta = property(lambda self: False)

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> None:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first.")

    def __format__(self, how: str) -> str:
        return format(self.detach().cpu(), how)

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {self.place}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        place = next(leaf.place for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Elsewhere))
        return FakeDevice(place.type).run(func, args, kwargs or {})


class Entrance(TorchFunctionMode):
    """What torch does before it dispatches, and with the driver's help: ``cuda`` means ``cuda:0``; from list to GPU."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def named(value: object) -> object:
            meant = isinstance(value, (str, torch.device)) and str(value) == self.place.type
            return self.place if meant else value

        kwargs = {name: named(value) for name, value in (kwargs or {}).items()}
        if func is not torch.device:
            args = tuple(map(named, args))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == self.place:
            return func(*args, **kwargs | {"device": "cpu"}).to(self.place)
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return torch.tensor(args[1], **{"dtype": args[0].dtype} | kwargs).to(self.place)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
            args = (args[0], places, *args[2:])
        return func(*args, **kwargs)


class FakeDevice(TorchDispatchMode):
    """Within this context there is a device of that kind (``"cuda"``, ``"mps"``), with index 0."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.place, self.transfers = torch.device(kind, 0), 0
        self.entrance = Entrance(self.place)
        answers = {"_lazy_init": lambda: None, "mem_get_info": lambda device: (8 << 30, 16 << 30)}
        self.patch = mock.patch.multiple(torch.cuda, **answers)

    def __enter__(self) -> FakeDevice:
        self.patch.start()
        self.entrance.__enter__()
        return super().__enter__()

    def __exit__(self, *failure) -> None:
        super().__exit__(*failure)
        self.entrance.__exit__(*failure)
        self.patch.stop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        here = [leaf for leaf in tensors if not isinstance(leaf, Elsewhere)]
        there = len(here) < len(tensors)
        target = kwargs.get("device")
        there_after = there
        if target is not None:  # to autograd, which makes zeros of its own, our tensors lie on meta
            there_after = torch.device(target).type in (self.place.type, "meta")
        elif func is aten.copy_.default:
            there_after = isinstance(args[0], Elsewhere)
        self.transfers += there and (not there_after or func is aten._local_scalar_dense.default)
        if there and func not in MOVES:
            indices = tree_flatten(args[1])[0] if func in MASKS else ()
            strangers = [leaf for leaf in here if leaf.dim() and not any(leaf is index for index in indices)]
            if strangers:
                raise RuntimeError(
                    f"{func}: expected all tensors on the same device, found {self.place} and cpu"
                )
        held_args, held_kwargs = tree_map(lambda leaf: getattr(leaf, "held", leaf), (args, kwargs))
        if target is not None and there_after:
            held_kwargs["device"] = torch.device("cpu")
        wrapped = {id(leaf.held): leaf for leaf in tensors if isinstance(leaf, Elsewhere)}
        result = func(*held_args, **held_kwargs)

        def wrap(leaf: object) -> object:
            if not isinstance(leaf, Tensor) or not there_after:
                return leaf
            if leaf.dtype == torch.float64 and self.place.type == "mps":
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype: the framework has none")
            known = wrapped.get(id(leaf))  # an operation in place gives its own tensor back
            return Elsewhere(leaf, self.place) if known is None else known

        return tree_map(wrap, result)


# ------------------------------------------------------------------------------------------------- notebooks


def become(kind: str) -> None:
    """Make this process, a notebook's kernel, one that has such a GPU, for good."""
    FakeDevice(kind).__enter__()
    if kind == "cuda":
        card = SimpleNamespace(name="pretended GPU", total_memory=16 * 10**9)
        torch.cuda.is_available = lambda: True
        torch.cuda.get_device_properties = lambda device=None: card
        torch.cuda.is_bf16_supported = lambda including_emulation=True: including_emulation
    else:
        torch.backends.mps.is_available = lambda: True
