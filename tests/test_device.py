"""The device chooser never raises, whatever the driver does; seeds make runs repeatable."""

from __future__ import annotations

import random
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtl_helpers import notebook
from mtl_helpers.notebook import device_report, get_device, seed_everything

ONES = torch.ones


def explode(*args, **kwargs):
    raise RuntimeError("CUDA driver version is insufficient\nsecond line that nobody wants to read")


@pytest.fixture
def machine(monkeypatch):
    """A machine with pretended devices: ``machine(cuda="works", mps="broken", xpu="raises")``; others are absent."""
    for name in ("MTL_DEVICE", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(notebook.shutil, "which", lambda name: None)

    def build(**kinds: str) -> None:
        for kind, owner in {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}.items():
            state = kinds.get(kind, "absent")
            answer = explode if state == "raises" else lambda state=state: state != "absent"
            monkeypatch.setattr(owner, "is_available", answer)

        def ones(size, device):
            state = kinds.get(device.type) if device.type != "cpu" else "works"
            if state not in ("works", "wrong") or device.index:
                explode()
            return ONES(size) * (state == "works")

        monkeypatch.setattr(torch, "ones", ones)

    build()
    return build


WORKING = [
    ({}, "cpu"),
    ({"mps": "works"}, "mps"),
    ({"xpu": "works", "mps": "works", "cuda": "works"}, "cuda"),
    ({"cuda": "raises", "mps": "raises", "xpu": "works"}, "xpu"),
]
FAILING = [
    ("broken", "insufficient", "cpu"),
    ("broken", "insufficient", "xpu"),
    ("wrong", "came out wrong", "cpu"),
]
NO_NAME = "torch knows no device of that name"
REFUSED = {
    "toaster": NO_NAME,
    "cuda:x": NO_NAME,
    "meta": "cannot train",
    "cuda": "no such",
    "xpu": "cannot be used",
}


@pytest.mark.parametrize(("kinds", "expected"), WORKING)
def test_picks_the_first_device_that_works(machine, kinds, expected):
    machine(**kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_device() == get_device("auto") == torch.device(expected)


@pytest.mark.parametrize(("state", "said", "expected"), FAILING)
def test_a_reported_gpu_that_cannot_compute_is_passed_over(machine, state, said, expected):
    machine(cuda=state, **{expected: "works"})
    with pytest.warns(UserWarning, match=f"cuda.*{said}.*Going on with '{expected}'") as caught:
        report = device_report()
    assert (report.kind, report.hint) == (expected, "")
    assert "second line" not in str(caught[0].message)


@pytest.mark.parametrize("wanted", REFUSED)
@pytest.mark.parametrize("source", ["get_device(...)", "MTL_DEVICE"])
def test_a_bad_override_warns_once_and_falls_back(machine, monkeypatch, wanted, source):
    machine(xpu="broken")
    monkeypatch.setenv("MTL_DEVICE", wanted)
    with pytest.warns(UserWarning, match=REFUSED[wanted]) as caught:
        assert get_device(None if source == "MTL_DEVICE" else wanted) == torch.device("cpu")
    assert len(caught) == 1 and str(caught[0].message).startswith(f"{source} asks for {wanted!r}")


def test_the_argument_wins_over_the_environment_and_that_over_detection(machine, monkeypatch):
    machine(cuda="works", xpu="works")
    monkeypatch.setenv("MTL_DEVICE", " CPU ")
    assert get_device() == torch.device("cpu")
    assert get_device("xpu") == torch.device("xpu")
    assert get_device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert get_device("auto") == torch.device("cuda")
    with pytest.warns(UserWarning, match="cuda:3"):
        assert get_device("cuda:3") == torch.device("cuda")
    assert "unset MTL_DEVICE" in device_report().hint
    monkeypatch.setenv("MTL_DEVICE", "")
    assert get_device() == torch.device("cuda")
    for nonsense in (3.5, object(), b"cuda"):
        with pytest.warns(UserWarning, match="no device of that name"):
            assert get_device(nonsense) == torch.device("cuda")


def test_the_report_on_this_machine(monkeypatch):
    report = device_report("cpu")
    assert report.kind == "cpu" and report.threads == torch.get_num_threads()
    assert report.memory_gb is None or report.memory_gb > 0
    for word in ("device", "memory", "bfloat16", "CPU threads", report.name):
        assert word in str(report)


@pytest.mark.parametrize(("kind", "owner"), [("cuda", torch.cuda), ("xpu", torch.xpu)])
def test_the_report_on_a_gpu(machine, monkeypatch, kind, owner):
    machine(**{kind: "works"})
    chip = SimpleNamespace(name="Tesla T4", total_memory=15_835_660_288)
    monkeypatch.setattr(owner, "get_device_properties", lambda device: chip)
    monkeypatch.setattr(owner, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    report = device_report()
    assert (report.name, report.kind, report.memory_gb, report.bf16) == ("Tesla T4", kind, 15.8, False)
    assert report.hint == "" and "15.8 GB" in str(report)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_report_survives_a_driver_that_raises(machine, monkeypatch, kind):
    machine(**{kind: "works"})
    for owner in (torch.cuda, torch.xpu, torch.mps):
        for question in ("get_device_properties", "is_bf16_supported", "recommended_max_memory"):
            monkeypatch.setattr(owner, question, explode, raising=False)
    report = device_report()
    assert (report.kind, report.memory_gb, report.bf16) == (kind, None, None) and "unknown" in str(report)


def test_hints_fit_the_machine(machine, monkeypatch):
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, None)
    assert device_report().hint == ""
    monkeypatch.setattr(notebook.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "CPU build" in device_report().hint
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "Accelerator" in device_report().hint
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert "Runtime → Change runtime type" in str(device_report())


def test_a_seed_makes_every_generator_repeat_itself():
    def draw(seed) -> list[float]:
        generator = seed_everything(seed)
        drawn = [float(torch.rand(())), float(torch.rand((), generator=generator))]
        return [*drawn, random.random(), float(np.random.rand())]

    assert draw(7) == draw(np.int64(7))
    assert not set(draw(8)) & set(draw(7))


@pytest.mark.parametrize("seed", [1.0, "1", None, -1, 2**32])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises((TypeError, ValueError), match="integer|between 0 and"):
        seed_everything(seed)
