"""What every notebook does once its setup cell has found this package. Explained in notebook 00."""

from __future__ import annotations

import importlib.util
import operator
import os
import platform
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

__all__ = ["DeviceReport", "device_report", "get_device", "seed_everything", "start"]


def seed_everything(seed: int = 0) -> torch.Generator:
    """Seed Python's ``random``, NumPy's global generator and torch on every device.

    Parameters
    ----------
    seed : int, default 0
        A whole number from 0 to 2**32 - 1, the range that NumPy accepts.

    Returns
    -------
    torch.Generator
        A fresh CPU generator with the same seed. Hand it to code that shuffles, so that its order does not depend
        on how many random numbers were drawn elsewhere.

    Raises
    ------
    TypeError, ValueError
        If `seed` is no whole number, or lies outside the range.

    Notes
    -----
    The same seed gives the same numbers on the same machine with the same versions. Another GPU, another number of
    threads or another torch release may round differently.
    """
    try:
        if isinstance(seed, bool):
            raise TypeError
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"seed must be a whole number such as 0; got {seed!r} ({type(seed).__name__})."
        ) from None
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and 2**32 - 1 (4294967295); got {seed}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


KINDS = ("cuda", "mps", "xpu", "cpu")  # in the order in which they are preferred
T = TypeVar("T")


@dataclass(frozen=True)
class DeviceReport:
    """What a device can do, as far as it could be found out.

    Attributes
    ----------
    name : str
        The chip's name.
    kind : str
        ``"cuda"``, ``"mps"``, ``"xpu"`` or ``"cpu"``.
    memory_gb : float or None
        The device's own memory in GB (10**9 bytes), main memory for a CPU; None if unknown.
    bf16 : bool or None
        Whether the chip computes in bfloat16 natively; None if unknown. False does not mean that bfloat16 fails, only
        that it is not faster.
    threads : int
        How many CPU threads torch uses.
    hint : str
        What would make training faster on this machine; empty if there is nothing to do.
    """

    name: str
    kind: str
    memory_gb: float | None
    bf16: bool | None
    threads: int
    hint: str = ""

    def __str__(self) -> str:
        memory = "unknown" if self.memory_gb is None else f"{self.memory_gb:.1f} GB"
        bf16 = {True: "yes", False: "no", None: "unknown"}[self.bf16]
        lines = [
            f"device       {self.kind} ({self.name})",
            f"memory       {memory}",
            f"bfloat16     {bf16}",
            f"CPU threads  {self.threads}",
        ]
        return "\n".join(lines + ([f"hint         {self.hint}"] if self.hint else []))


def get_device(prefer: str | torch.device | None = None) -> torch.device:
    """Return the device to train on.

    Parameters
    ----------
    prefer : str or torch.device, optional
        ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"``, ``"cpu"``; ``"auto"`` picks the first that works, and so does
        None unless the environment variable ``MTL_DEVICE`` names a device. `prefer` wins over ``MTL_DEVICE``.

    Returns
    -------
    torch.device
        A device on which a tiny computation has just succeeded, or the CPU.

    Notes
    -----
    It never raises. A name that torch does not know, a device that is not there, or one that cannot allocate gives
    a `UserWarning` that says so, and the next best device.
    """
    source = "get_device(...)" if prefer is not None else "MTL_DEVICE"
    wanted = prefer if prefer is not None else os.environ.get("MTL_DEVICE")
    problem = ""
    refused: set[str] = set()
    name = _quietly(lambda: str(wanted or "auto").strip().lower(), "an object without a readable name")
    if name not in ("auto", "none"):
        device, problem = _requested(name)
        if device is not None:
            return device
        refused.add(name)
        problem = f"{source} asks for {name!r}, but {problem}"

    for kind in KINDS:
        if kind in refused or not _is_reported(kind):
            continue
        device = torch.device(kind)
        failure = _failure(device)
        if failure is None:
            break
        problem = problem or f"a {kind} device is reported, but it cannot be used: {failure}"
    else:
        device = torch.device("cpu")
    if problem:
        warnings.warn(f"{problem}. Going on with {str(device)!r}.", UserWarning, stacklevel=2)
    return device


def device_report(device: str | torch.device | None = None) -> DeviceReport:
    """Describe a device: name, memory, bfloat16, CPU threads, and what would make training faster.

    Parameters
    ----------
    device : str or torch.device, optional
        The device to describe; by default the one that `get_device` picks.

    Returns
    -------
    DeviceReport
        ``print`` it for a readable block. What cannot be found out is None; nothing is raised. A device that cannot
        be used is replaced as `get_device` replaces it.
    """
    device = get_device(device)
    kind = device.type
    describe = {"cuda": _describe_cuda, "xpu": _describe_xpu, "mps": _describe_mps, "cpu": _describe_cpu}[
        kind
    ]
    name, memory, bf16 = describe(device)
    return DeviceReport(
        name=name,
        kind=kind,
        memory_gb=None if memory is None else round(memory / 1e9, 1),
        bf16=bf16,
        threads=_quietly(torch.get_num_threads, 1),
        hint=_quietly(_hint, "") if kind == "cpu" else "",
    )


def _quietly(question: Callable[[], T], otherwise: T) -> T:
    """Ask something that drivers may answer with an exception of any kind."""
    try:
        return question()
    except Exception:
        return otherwise


def _is_reported(kind: str) -> bool:
    """Whether torch says that there is a device of this kind."""
    probes = {
        "cuda": lambda: torch.cuda.is_available(),
        "mps": lambda: torch.backends.mps.is_available(),
        "xpu": lambda: torch.xpu.is_available(),
        "cpu": lambda: True,
    }
    return bool(_quietly(probes[kind], False))


def _failure(device: torch.device) -> str | None:
    """Try to compute on the device; None if that went well, else the reason in one line."""
    try:
        if (torch.ones(2, device=device) + 1).sum().item() != 4:
            return "1 + 1 came out wrong on it"
    except Exception as error:
        lines = str(error).strip().splitlines()
        return (lines[0] if lines else type(error).__name__).rstrip(". ")[:200]
    return None


def _requested(name: str) -> tuple[torch.device | None, str]:
    """The device of that name, or None and the reason why not."""
    expected = "the known names are cuda, cuda:0, mps, xpu, cpu and auto"
    try:
        device = torch.device(name)
    except Exception:
        return None, f"torch knows no device of that name; {expected}"
    if device.type not in KINDS:
        return None, f"the course cannot train on it; {expected}"
    if not _is_reported(device.type):
        return None, "torch finds no such device on this machine"
    failure = _failure(device)
    return (device, "") if failure is None else (None, f"it cannot be used: {failure}")


def _describe_cuda(device: torch.device) -> tuple[str, int | None, bool | None]:
    properties = _quietly(lambda: torch.cuda.get_device_properties(device), None)
    if torch.version.hip:  # AMD: no compute capability to go by
        bf16 = _quietly(lambda: bool(torch.cuda.is_bf16_supported()), None)
    else:  # NVIDIA computes in bfloat16 from compute capability 8.0 (Ampere) on; a T4 has 7.5
        bf16 = _quietly(lambda: torch.cuda.get_device_capability(device) >= (8, 0), None)
    return getattr(properties, "name", "GPU"), getattr(properties, "total_memory", None), bf16


def _describe_xpu(device: torch.device) -> tuple[str, int | None, bool | None]:
    properties = _quietly(lambda: torch.xpu.get_device_properties(device), None)
    bf16 = _quietly(lambda: bool(torch.xpu.is_bf16_supported()), None)
    return getattr(properties, "name", "Intel GPU"), getattr(properties, "total_memory", None), bf16


def _describe_mps(device: torch.device) -> tuple[str, int | None, bool | None]:
    memory = _quietly(lambda: int(torch.mps.recommended_max_memory()), None)
    return f"{_cpu_name()}, Apple GPU", memory, None


def _describe_cpu(device: torch.device) -> tuple[str, int | None, bool | None]:
    flags = _quietly(lambda: _cpuinfo("flags") or _cpuinfo("Features"), None)
    bf16 = None if flags is None else any(flag.endswith("bf16") for flag in flags.split())
    return _cpu_name(), _quietly(_main_memory, None), bf16


def _cpuinfo(key: str) -> str | None:
    """A field of Linux's /proc/cpuinfo, None on other systems."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        field, _, value = line.partition(":")
        if field.strip() == key:
            return value.strip()
    return None


def _cpu_name() -> str:
    def from_macos() -> str:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    name = _quietly(lambda: _cpuinfo("model name"), None)
    if not name and sys.platform == "darwin":
        name = _quietly(from_macos, "")
    return name or _quietly(lambda: platform.processor() or platform.machine(), "") or "CPU"


def _main_memory() -> int | None:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil  # Windows; comes with ipykernel

    return psutil.virtual_memory().total


def _on_colab() -> bool:
    if "google.colab" in sys.modules:
        return True
    return _quietly(lambda: importlib.util.find_spec("google.colab") is not None, False)


def _hint() -> str:
    """What would get a reader whose notebook runs on the CPU onto a GPU."""
    reported = [kind for kind in KINDS[:-1] if _is_reported(kind)]
    if reported:  # either a choice, which can be undone, or out of order, of which get_device has warned
        asked = os.environ.get("MTL_DEVICE")
        return (
            f"torch reports a {reported[0]} device; unset MTL_DEVICE ({asked!r}) to use it." if asked else ""
        )
    if _on_colab():
        return (
            "this Colab runtime has no GPU. Runtime → Change runtime type → pick a GPU (T4, for instance) → Save, "
            "then run the notebook again from its first cell."
        )
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return (
            "this Kaggle session has no GPU. Settings → Accelerator → pick a GPU, then run all cells again."
        )
    if not (torch.version.cuda or torch.version.hip) and shutil.which("nvidia-smi"):
        return "this machine has an NVIDIA driver, but the installed torch is a CPU build (see pytorch.org)."
    return ""


def start(seed: int = 0) -> tuple[torch.device, bool]:
    """Seed all generators, pick the device, set the course's look, and print where the notebook runs.

    Parameters
    ----------
    seed : int, default 0
        See `mtl_helpers.notebook.seed_everything`.

    Returns
    -------
    device : torch.device
        Where to train; see `mtl_helpers.notebook.get_device` and the environment variable ``MTL_DEVICE``.
    FAST : bool
        True if the environment variable ``FAST`` is 1: the notebook then makes short runs on few rows.
    """
    from mtl_helpers.widgets.figures import use_course_style

    seed_everything(seed)
    use_course_style()
    device = get_device()
    fast = os.environ.get("FAST") == "1"
    report = device_report(device)
    print(
        f"Python {platform.python_version()} · torch {torch.__version__} · {device} ({report.name})"
        + (" · FAST=1: short runs" if fast else "")
    )
    if report.hint:
        print("Hint:", report.hint)
    return device, fast
