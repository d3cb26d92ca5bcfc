"""What every notebook does once its setup cell has found this package. Explained in notebook 00."""

from __future__ import annotations

import operator
import os
import platform
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["DeviceReport", "device_report", "get_device", "seed_everything", "start"]


def seed_everything(seed: int = 0) -> torch.Generator:
    """Seed Python's ``random``, NumPy's global generator and torch on every device.

    ``seed`` is a whole number from 0 to 2**32 - 1, NumPy's range (else TypeError or ValueError). Returns a fresh CPU
    generator with the same seed: hand it to code that shuffles, so that its order does not depend on how many random
    numbers were drawn elsewhere. Another GPU, number of threads or torch release may round differently.
    """
    seed = operator.index(seed)
    np.random.seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


KINDS = ("cuda", "mps", "xpu", "cpu")  # in the order in which they are preferred
NOT_THERE = "torch finds no such device on this machine"


def _quietly(question: Callable[[], Any], otherwise: Any = None) -> Any:
    """Ask something that drivers may answer with an exception of any kind."""
    try:
        return question()
    except Exception:
        return otherwise


def _reported(kind: str) -> bool:
    """Whether torch says that there is a device of this kind."""
    owner = torch.backends if kind == "mps" else torch
    return kind == "cpu" or bool(_quietly(lambda: getattr(owner, kind).is_available(), False))


def _trouble(name: str) -> str:
    """Why the device of that name cannot be trained on; empty if a tiny computation on it succeeds."""
    device = _quietly(lambda: torch.device(name))
    if device is None or device.type not in KINDS:
        why = "torch knows no device of that name" if device is None else "the course cannot train on it"
        return f"{why}; the known names are cuda, cuda:0, mps, xpu, cpu and auto"
    if not _reported(device.type):
        return NOT_THERE
    try:
        right = (torch.ones(2, device=device) + 1).sum().item() == 4
        return "" if right else "it cannot be used: 1 + 1 came out wrong on it"
    except Exception as error:  # a driver's message may be long: its first line says most
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"it cannot be used: {said.rstrip('. ')[:200]}"


def get_device(prefer: str | torch.device | None = None) -> torch.device:
    """The device to train on: one on which a tiny computation has just succeeded, or the CPU.

    ``prefer`` is ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"``, ``"cpu"``; ``"auto"`` picks the first that works, and
    so does None unless the environment variable ``MTL_DEVICE`` names a device. It never raises. A name that torch does
    not know, a device that is not there, or one that cannot compute gives a `UserWarning` that says so, and the next
    best device.
    """
    source = "MTL_DEVICE" if prefer is None else "get_device(...)"
    wanted = os.environ.get("MTL_DEVICE") if prefer is None else prefer
    asked = str(wanted or "auto").strip().lower()
    complaint = ""
    for name in KINDS if asked in ("auto", "none") else (asked, *KINDS):
        trouble = _trouble(name)
        if not trouble:
            break
        if name == asked:
            complaint = f"{source} asks for {name!r}, but {trouble}"
        elif trouble != NOT_THERE:
            complaint = complaint or f"a {name} device is reported, but {trouble}"
    if complaint:
        warnings.warn(f"{complaint}. Going on with {name!r}.", UserWarning, stacklevel=2)
    return torch.device(name)


@dataclass(frozen=True)
class DeviceReport:
    """What a device can do, as far as it could be found out; ``print`` it for a readable block."""

    name: str  # the chip's
    kind: str  # "cuda", "mps", "xpu" or "cpu"
    memory_gb: float | None  # its own, main memory for a CPU, in GB (10**9 bytes); None if unknown
    bf16: bool | None  # does it compute in bfloat16 natively? False: that is no faster; None: unknown
    threads: int  # how many CPU threads torch uses
    hint: str = ""  # what would make training faster on this machine, if anything

    def __str__(self) -> str:
        memory = "unknown" if self.memory_gb is None else f"{self.memory_gb:.1f} GB"
        bf16 = {True: "yes", False: "no", None: "unknown"}[self.bf16]
        lines = [f"device       {self.kind} ({self.name})", f"memory       {memory}", f"bfloat16     {bf16}"]
        lines += [f"CPU threads  {self.threads}", *([f"hint         {self.hint}"] if self.hint else [])]
        return "\n".join(lines)


def device_report(device: str | torch.device | None = None) -> DeviceReport:
    """Describe a device, by default the one that `get_device` picks; one that cannot be used is replaced as there. What
    cannot be found out is None; nothing is raised."""
    device = get_device(device)
    kind, hint = device.type, ""
    if kind == "cpu":
        info = _quietly(Path("/proc/cpuinfo").read_text, "")  # Linux alone has it
        model = re.search(r"model name\s*: (.+)", info)
        name = model[1] if model else platform.processor() or platform.machine() or "CPU"
        memory = _quietly(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        bf16, hint = "bf16" in info if info else None, _hint()
    elif kind == "mps":
        name, memory, bf16 = "Apple GPU", _quietly(lambda: torch.mps.recommended_max_memory()), None
    else:
        driver = getattr(torch, kind)
        chip = _quietly(lambda: driver.get_device_properties(device))
        name, memory = getattr(chip, "name", f"a {kind} GPU"), getattr(chip, "total_memory", None)
        bf16 = _quietly(lambda: driver.is_bf16_supported(including_emulation=False))
    memory_gb = None if memory is None else round(memory / 1e9, 1)
    return DeviceReport(name, kind, memory_gb, bf16, torch.get_num_threads(), hint)


def _hint() -> str:
    """What would get a reader whose notebook runs on the CPU onto a GPU."""
    reported = [kind for kind in KINDS[:-1] if _reported(kind)]
    if reported:  # either a choice, which can be undone, or out of order, of which get_device has warned
        asked = os.environ.get("MTL_DEVICE")
        return f"torch reports {reported[0]}; unset MTL_DEVICE ({asked!r}) to use it." if asked else ""
    again = "pick a GPU, then run the notebook again from its first cell."
    if "google.colab" in sys.modules:
        return f"this Colab runtime has no GPU. Runtime → Change runtime type → {again}"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return f"this Kaggle session has no GPU. Settings → Accelerator → {again}"
    if not (torch.version.cuda or torch.version.hip) and shutil.which("nvidia-smi"):
        return "this machine has an NVIDIA driver, but the installed torch is a CPU build (see pytorch.org)."
    return ""


def start(seed: int = 0) -> tuple[torch.device, bool]:
    """Seed all generators, pick the device, set the course's look, and print where the notebook runs. Returns the
    device (`get_device`), and ``FAST``, True if the environment variable of that name is 1: then runs are short."""
    from mtl_helpers.widgets import number_folded_cells, use_course_style

    seed_everything(seed)
    use_course_style()
    device, fast = get_device(), os.environ.get("FAST") == "1"
    report = device_report(device)
    where = f"Python {platform.python_version()} · torch {torch.__version__} · {device} ({report.name})"
    print(where + (" · FAST=1: short runs" if fast else ""))
    if report.hint:
        print("Hint:", report.hint)
    number_folded_cells()
    return device, fast
