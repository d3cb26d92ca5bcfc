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

from mtl_helpers import notebook as device_module
from mtl_helpers.notebook import DeviceReport, device_report, get_device, seed_everything

REAL_ONES = torch.ones


def explode(*args, **kwargs):
    raise RuntimeError("CUDA driver version is insufficient\nsecond line that nobody wants to read")


@pytest.fixture
def machine(monkeypatch):
    """A machine whose devices are faked: ``machine(cuda="works", mps="broken")``; the others are absent."""
    monkeypatch.delenv("MTL_DEVICE", raising=False)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(device_module, "_on_colab", lambda: False)
    monkeypatch.setattr(device_module.shutil, "which", lambda name: None)

    def build(**kinds: str) -> None:
        probes = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
        for kind, owner in probes.items():
            state = kinds.get(kind, "absent")
            answer = explode if state == "raises" else lambda state=state: state != "absent"
            monkeypatch.setattr(owner, "is_available", answer)

        def ones(size, device=None):
            device = torch.device(device)
            if device.type != "cpu" and (kinds.get(device.type) != "works" or (device.index or 0) > 0):
                explode()
            return REAL_ONES(size)

        monkeypatch.setattr(device_module.torch, "ones", ones)

    build()
    return build


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({}, "cpu"),
        ({"cuda": "works"}, "cuda"),
        ({"mps": "works"}, "mps"),
        ({"xpu": "works"}, "xpu"),
        ({"xpu": "works", "mps": "works", "cuda": "works"}, "cuda"),
        ({"cuda": "raises", "xpu": "works"}, "xpu"),
        ({"cuda": "raises", "mps": "raises", "xpu": "raises"}, "cpu"),
    ],
)
def test_picks_the_first_device_that_works(machine, kinds, expected):
    machine(**kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_device() == torch.device(expected)
        assert get_device("auto") == torch.device(expected)


@pytest.mark.parametrize(
    ("kinds", "expected"), [({"cuda": "broken"}, "cpu"), ({"cuda": "broken", "xpu": "works"}, "xpu")]
)
def test_a_reported_gpu_that_cannot_allocate_is_passed_over(machine, kinds, expected):
    machine(**kinds)
    with pytest.warns(UserWarning, match=f"cuda.*insufficient.*Going on with '{expected}'") as caught:
        assert get_device() == torch.device(expected)
    assert "second line" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("frobnicator", "torch knows no device of that name"),
        ("cuda:x", "torch knows no device of that name"),
        ("meta", "cannot train on it"),
        ("cuda", "finds no such device"),
        ("mps", "finds no such device"),
        ("xpu", "cannot be used"),
    ],
)
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_bad_override_warns_and_falls_back(machine, monkeypatch, wanted, reason, how):
    machine(xpu="broken")
    if how == "environment":
        monkeypatch.setenv("MTL_DEVICE", wanted)
    with pytest.warns(UserWarning, match=reason) as caught:
        found = get_device(wanted) if how == "argument" else get_device()
    assert found == torch.device("cpu")
    message = str(caught[0].message)
    assert message.startswith("get_device(...)" if how == "argument" else "MTL_DEVICE")
    assert wanted in message
    assert len(caught) == 1


def test_an_index_too_high_falls_back_to_the_first_gpu(machine):
    machine(cuda="works")
    with pytest.warns(UserWarning, match="cuda:3"):
        assert get_device("cuda:3") == torch.device("cuda")


def test_the_argument_wins_over_the_environment_and_that_over_detection(machine, monkeypatch):
    machine(cuda="works", xpu="works")
    monkeypatch.setenv("MTL_DEVICE", " CPU ")
    assert get_device() == torch.device("cpu")
    assert get_device("xpu") == torch.device("xpu")
    assert get_device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert get_device("auto") == torch.device("cuda")
    monkeypatch.setenv("MTL_DEVICE", "")
    assert get_device() == torch.device("cuda")


@pytest.mark.parametrize("nonsense", [3.5, object(), [], b"cuda"])
def test_an_override_of_the_wrong_type_does_not_raise(machine, nonsense):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert get_device(nonsense) == torch.device("cpu")


def test_a_device_that_computes_nonsense_is_passed_over(machine, monkeypatch):
    machine(cuda="works")
    right = device_module.torch.ones
    monkeypatch.setattr(
        device_module.torch,
        "ones",
        lambda size, device: right(size, device=device) * (0 if torch.device(device).type == "cuda" else 1),
    )
    with pytest.warns(UserWarning, match="came out wrong"):
        assert get_device() == torch.device("cpu")


def test_the_cpu_report_is_complete_on_this_machine(monkeypatch):
    monkeypatch.delenv("MTL_DEVICE", raising=False)
    report = device_report("cpu")
    assert report.kind == "cpu"
    assert report.name
    assert report.threads == torch.get_num_threads()
    assert report.memory_gb is None or report.memory_gb > 0
    assert report.bf16 in (True, False, None)
    for word in ("device", "memory", "bfloat16", "CPU threads", report.name):
        assert word in str(report)


def test_the_cuda_report(machine, monkeypatch):
    machine(cuda="works")
    card = SimpleNamespace(name="Tesla T4", total_memory=15_835_660_288)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    report = device_report()
    assert (report.name, report.kind, report.memory_gb, report.bf16, report.hint) == (
        "Tesla T4",
        "cuda",
        15.8,
        False,
        "",
    )
    assert "15.8 GB" in str(report)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert device_report().bf16 is True


def test_the_amd_report_asks_torch_for_bfloat16(machine, monkeypatch):
    machine(cuda="works")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: SimpleNamespace(name="MI300X", total_memory=None)
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    report = device_report()
    assert (report.name, report.memory_gb, report.bf16) == ("MI300X", None, True)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_report_survives_a_driver_that_raises(machine, monkeypatch, kind):
    machine(**{kind: "works"})
    for owner in (torch.cuda, torch.xpu, torch.mps):
        for question in (
            "get_device_properties",
            "get_device_capability",
            "is_bf16_supported",
            "recommended_max_memory",
        ):
            if hasattr(owner, question):
                monkeypatch.setattr(owner, question, explode)
    report = device_report()
    assert report.kind == kind
    assert report.memory_gb is None
    assert report.bf16 is None
    assert "unknown" in str(report)


def test_the_report_on_a_colab_without_gpu_says_how_to_switch_it_on(machine, monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("MTL_DEVICE", raising=False)
    if torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert "Change runtime type" not in device_report().hint
    google = types.ModuleType("google")
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    report = device_report()
    assert "Runtime → Change runtime type" in report.hint
    assert report.hint in str(report)


def test_hints_fit_the_machine(machine, monkeypatch):
    assert device_report().hint == ""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "Accelerator" in device_report().hint
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.setattr(device_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "CPU build" in device_report().hint
    machine(cuda="works")
    monkeypatch.setenv("MTL_DEVICE", "cpu")
    assert "unset MTL_DEVICE" in device_report().hint


def test_no_hint_but_a_warning_when_the_gpu_is_out_of_order(machine):
    machine(cuda="broken")
    with pytest.warns(UserWarning, match="cannot be used"):
        report = device_report()
    assert report == DeviceReport(report.name, "cpu", report.memory_gb, report.bf16, report.threads, "")


def test_a_seed_makes_every_generator_repeat_itself():
    def draw() -> tuple:
        generator = seed_everything(7)
        return (
            random.random(),
            float(np.random.rand()),
            float(torch.rand(())),
            float(torch.rand((), generator=generator)),
        )

    first = draw()
    assert draw() == first
    seed_everything(8)
    assert float(torch.rand(())) != first[2]


def test_the_returned_generator_stands_on_its_own():
    generator = seed_everything(np.int64(3))
    torch.rand(100)
    assert torch.equal(
        torch.randperm(9, generator=generator), torch.randperm(9, generator=seed_everything(3))
    )


@pytest.mark.parametrize(
    ("seed", "error"), [(1.0, TypeError), ("1", TypeError), (True, TypeError), (None, TypeError)]
)
def test_a_seed_of_the_wrong_type_is_refused(seed, error):
    with pytest.raises(error, match="whole number"):
        seed_everything(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="between 0 and"):
        seed_everything(seed)
