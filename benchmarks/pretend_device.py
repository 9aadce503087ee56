"""A pretend accelerator: tensors that say they lie on a device, and hold their values on the CPU.

``with pretended() as log:`` gives the device ``log.device``.  What lies there and what lies on the CPU do not mix, as
with CUDA; and ``log`` counts every place where the host would wait for an accelerator until it has done all that it was
asked:

- ``values``: the host reads a number (``item``, ``bool``, ``tolist``);
- ``shapes``: an operator whose result's shape depends on values (``nonzero``, indexing by a mask);
- ``copies``: a copy between host and device that is not asked to go on by itself (``non_blocking``).

Under autocast, operators get the types that CUDA would choose (PyTorch's documentation of ``torch.amp``).  One process
can have one such device, and it must be its first besides the CPU: PyTorch makes the threads of its backward passes
once.  So tests start a process for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import distill3d

NAME = "pretended"
PACKAGE = Path(distill3d.__file__).parent
#: Where the library waits on behalf of others.
TRANSFERS = "transfers.py"
CPU = torch.device("cpu")
Kind = Literal["values", "shapes", "copies"]

VALUES = {"_local_scalar_dense", "equal", "is_nonzero", "_linalg_check_errors", "linalg_lstsq"}
SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
          "bincount", "nms", "_unique"}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
#: Operators that take no number of the CPU's among their tensors.
STRICT = {"cat", "stack", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add", "index_add_",
          "mm", "bmm", "addmm", "convolution"}  # fmt: skip


@dataclass
class Log:
    """Waits by kind and by the line of the library where the host would wait."""

    device: torch.device
    waits: Counter[tuple[Kind, str]] = field(default_factory=Counter)

    def add(self, kind: Kind) -> None:
        self.waits[kind, place()] += 1

    def take(self) -> Counter[tuple[Kind, str]]:
        """What was counted since the last call."""
        taken, self.waits = self.waits, Counter()
        return taken


_logs: list[Log] = []


def place() -> str:
    """The innermost line of the library that is being run; of backward passes PyTorch tells none."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.name != TRANSFERS:
            return f"{path.relative_to(PACKAGE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Pretended(Tensor):
    """A tensor on the pretended device; ``held`` are its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        """All is done by ``__new__``."""

    def __repr__(self) -> str:  # pyright: ignore
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.detach().clone().requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # files are read onto the CPU

    # PyTorch turns what follows into operators where no dispatch sees them.

    def tolist(self) -> Any:
        _logs[-1].add("values")
        return self.held.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:  # pyright: ignore
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.device if device is None else device)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        # CUDA fills by a mask without looking at it where the value is the host's.
        super().__setitem__(
            _index(index), value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        )


def _index(index: Any) -> Any:
    """Lists as tensors on the CPU, which are copied when they are used."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_index, index)) if isinstance(index, tuple) else index


def is_pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator: what it would cost, whether its devices agree, and its result."""
    name, log = func.overloadpacket.__name__, _logs[-1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [t for t in tensors if isinstance(t, Pretended)]
    asked = kwargs.get("device")
    plain = {k: CPU if k == "device" and is_pretended(v) else v for k, v in kwargs.items()}
    if name == "_to_copy":
        return _copied(func, tensors[0], plain, asked, log)
    if name == "copy_":
        if isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
            waits = not (len(args) > 2 and args[2] or kwargs.get("non_blocking"))
            if waits or not isinstance(args[0], Pretended):
                log.add("copies")
        func(_held(args[0]), _held(args[1]))
        return args[0]
    if there:
        _refuse_mixed(name, args, [t for t in tensors if not isinstance(t, Pretended)], there, log)
        _count(name, args, kwargs, log)
    on_device = is_pretended(asked) if asked is not None else bool(there)
    generator = kwargs.get("generator")
    if on_device and generator is not None:
        raise RuntimeError(f"{name}: expected a generator of {NAME!r}, found the CPU's")
    plain.pop("pin_memory", None)
    result = func(*tree_map(_held, args), **tree_map(_held, plain))
    if name == "_local_scalar_dense" or not on_device:
        return result
    given = {id(t.held): t for t in there}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if (same := given.get(id(value))) is None:
            return Pretended(value)
        if func._schema.is_mutable:
            if same.shape != value.shape:
                raise NotImplementedError(f"{name} changes the shape of a tensor")
            return same
        return Pretended(value.detach())

    return tree_map(back, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _copied(func: Any, source: Tensor, kwargs: dict[str, Any], asked: Any, log: Log) -> Tensor:
    to_device = is_pretended(asked) if asked is not None else isinstance(source, Pretended)
    by_itself = kwargs.pop("non_blocking", False)
    kwargs.pop("pin_memory", None)
    held = func(_held(source), **kwargs)
    if isinstance(source, Pretended) != to_device and not (by_itself and to_device):
        log.add("copies")
    return Pretended(held) if to_device else held


def _refuse_mixed(name: str, args: Any, here: list[Tensor], there: list[Pretended], log: Log) -> None:
    """As CUDA: numbers of the CPU go with tensors of the device, and tensors of the CPU may index them."""
    if name in INDEXING and isinstance(args[0], Pretended):
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        if any(not isinstance(i, Pretended) for i in indices):
            log.add("copies")
        here = [t for t in here if not any(t is i for i in indices)]
    if any(t.dim() > 0 or name in STRICT for t in here):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found the CPU's among {NAME!r}'s")


def _count(name: str, args: Any, kwargs: dict[str, Any], log: Log) -> None:
    if name in VALUES:
        log.add("values")
    elif name in SHAPES or name == "repeat_interleave" and kwargs.get("output_size") is None:
        log.add("shapes")
    elif name in INDEXING and isinstance(args[0], Pretended):
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
        filled = len(args) > 2 and args[2].numel() == 1 and not isinstance(args[2], Pretended) and len(masks) == 1
        if masks and not filled:
            log.add("shapes")
        elif len(args) > 2 and not isinstance(args[2], Pretended) and not filled:
            log.add("copies")  # even of a single number


class _Mode(TorchDispatchMode):
    """Sees what is made on the device from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


# ---------------------------------------------------------------------------------------------- the device and autocast

#: What CUDA computes in the lower type, in float32, and in the widest type among its inputs.
LOWER = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
         "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm", "prelu",
         "scaled_dot_product_attention")  # fmt: skip
WIDE = ("acos", "asin", "cosh", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh", "tan",
        "pow", "softplus", "layer_norm", "group_norm", "cosine_similarity", "nll_loss", "nll_loss2d", "kl_div",
        "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist",
        "renorm", "logsumexp", "prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "sum",
        "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")  # fmt: skip
WIDEST = ("addcdiv", "addcmul", "atan2", "bilinear", "dot", "grid_sampler", "index_put", "tensordot", "scatter_add")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _autocast(op: Any, kind: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        floats = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            dtype = torch.float32
            if kind == "lower":
                dtype = torch.get_autocast_dtype(NAME)
            elif kind == "widest" and all(t.dtype != torch.float32 for t in floats):
                return op(*args, **kwargs)
            return op(*tree_map(lambda v: _cast(v, dtype), args), **tree_map(lambda v: _cast(v, dtype), kwargs))

    return call


@cache
def _device() -> tuple[torch.device, Sequence[torch.library.Library]]:
    """Registers the device; once."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    through = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    through.fallback(torch.library.fallthrough_kernel)
    casting = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for kind, names in (("lower", LOWER), ("wide", WIDE), ("widest", WIDEST)):
        for name in names:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                op = getattr(packet, overload)
                if not op._schema.is_mutable and "out" not in overload:
                    casting.impl(op, _autocast(op, kind))
    return torch.device(NAME, 0), (through, casting)


@contextmanager
def pretended() -> Iterator[Log]:
    """The device and what it counts."""
    device, _ = _device()
    log = Log(device)
    tensor, as_tensor = torch.tensor, torch.as_tensor

    def made(data: Any, *, device: Any = None, dtype: Any = None, requires_grad: bool = False, **_: Any) -> Tensor:
        if isinstance(data, Pretended):
            device = data.device if device is None else device
            return data.detach().clone().to(device=device, dtype=dtype or data.dtype).requires_grad_(requires_grad)
        value = tensor(data, dtype=dtype)
        return (value if device is None else value.to(device)).requires_grad_(requires_grad)

    def same(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        value = data if isinstance(data, Tensor) else as_tensor(data, dtype=dtype)
        return value.to(device=value.device if device is None else device, dtype=dtype or value.dtype)

    swapping = torch.__future__.get_swap_module_params_on_conversion
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "tensor", made))
        stack.enter_context(patch.object(torch, "as_tensor", same))
        stack.enter_context(_swapped_when_moved(swapping()))
        _logs.append(log)
        try:
            with _Mode():
                yield log
        finally:
            _logs.pop()


@contextmanager
def _swapped_when_moved(before: bool) -> Iterator[None]:
    """Modules keep their parameters' identity when they are moved to the device."""
    apply = torch.nn.Module._apply

    def moved(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(self, fn, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    with patch.object(torch.nn.Module, "_apply", moved):
        yield
