"""The replay never lets a model see what it is asked; late purchases; the watch: silent when quiet, loud at a fault."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from nb10_refresh import Refresher, arrivals, fake_negative_weights, replay

from mtl_helpers.data import FeatureEncoder, MultiTaskDataset, Task
from mtl_helpers.models import SharedBottom
from mtl_helpers.production.watch import calibration_z, day_report, psi
from mtl_helpers.training import predict

TASKS = (Task("click"), Task("purchase"))


def small_log(n: int = 3000, days: int = 6, seed: int = 0):
    """A log whose click and purchase hang on x; purchases come a day later on average."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": rng.normal(size=n), "kind": rng.choice(list("abc"), n)})
    frame["click"] = (rng.random(n) < 1 / (1 + np.exp(1 - 2 * frame["x"]))).astype(int)
    frame["purchase"] = frame["click"] * (rng.random(n) < 0.4)
    shown = np.sort(rng.random(n) * days)
    paid = np.where(frame["purchase"] > 0, shown + rng.exponential(size=n), np.inf)
    encoder = FeatureEncoder(["x"], ["kind"]).fit(frame)
    torch.manual_seed(0)
    model = SharedBottom(encoder.schema, TASKS, embedding_dim=2, hidden=(8,), tower=())
    return model, MultiTaskDataset.from_frame(frame, encoder, TASKS), shown, paid


def refresher(model, log, shown, paid, **more):
    weights = {"click": 1.0, "purchase": 1.0}
    return Refresher(model, log, shown, paid, **{"lr": 1e-2, "weight_decay": 0.0, "weights": weights} | more)


def test_rows_are_scored_before_they_are_learned():
    model, log, _, _ = small_log()
    cuts = [0, 1000, 2000, 3000]
    first, calls = predict(model, log), []

    def learn(start, stop):
        calls.append((start, stop))
        with torch.no_grad():
            model.towers["click"].head.bias += 1

    said = replay(model, log, cuts, learn)
    assert calls == [(0, 1000), (1000, 2000), (2000, 3000)]
    for k, (start, stop) in enumerate(calls):  # as many lessons behind it as refreshes before it
        logit = torch.logit(first["click"][start:stop].double()) + k
        assert torch.allclose(said["click"][start:stop].double(), logit.sigmoid(), atol=1e-5)
    again = replay(model, log, cuts, None)
    assert torch.equal(again["click"], predict(model, log)["click"])


@pytest.mark.parametrize("late", ["naive", "wait", "fake negatives", "oracle"])
def test_what_is_learned_of_purchases_hangs_on_nothing_later(late):
    _, _, shown, paid = small_log()
    rows, y = arrivals(shown, paid, 3.0, 4.0, late)
    assert len(rows) == len(y)
    if late == "oracle":
        assert np.array_equal(y, np.isfinite(paid[rows]))
        return
    future = np.where(paid >= 4.0, paid + 100, paid)  # whatever happens after the refresh
    again = arrivals(shown, future, 3.0, 4.0, late)
    assert np.array_equal(rows, again[0])
    assert np.array_equal(y, again[1])
    if late == "wait":
        assert len(rows) == 0  # the log is younger than four days
        rows, y = arrivals(shown, paid, 3.0, 4.0, late, wait=2.0)
        assert shown[rows].min() >= 1.0
        assert shown[rows].max() < 2.0
        assert np.array_equal(y, paid[rows] < 4.0)


def test_over_a_whole_log_every_row_is_a_no_once_and_every_purchase_a_yes_once():
    _, _, shown, paid = small_log()
    seen = [arrivals(shown, paid, day, day + 1, "fake negatives") for day in range(30)]
    rows, y = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert sorted(rows[y == 0]) == list(range(len(shown)))
    assert sorted(rows[y == 1]) == np.flatnonzero(paid < 30).tolist()


def test_fake_negative_weights_give_back_the_true_loss():
    """Of what arrives p / (1 + p) are a yes: weighted by p over that, the expected loss is that of the true labels."""
    p = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    q = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    yes, no = p / (1 + p), 1 / (1 + p)
    one, zero = torch.ones_like(p), torch.zeros_like(p)
    found = yes * fake_negative_weights(p, one) * -q.log()
    found = found + no * fake_negative_weights(p, zero) * -torch.log1p(-q)
    assert torch.allclose(found, -(p * q.log() + (1 - p) * torch.log1p(-q)))


@pytest.mark.slow
def test_late_purchases_fool_the_naive_and_not_the_others():
    """Sum of predictions over sum of purchases in a long log: naive far below one, the rest near it."""
    ratio = {}
    for late in ("naive", "wait", "fake negatives", "oracle"):
        model, log, shown, paid = small_log(30_000, 40)
        cuts = np.unique(np.searchsorted(shown, np.arange(0, 40.5, 0.25))).tolist()
        said = replay(model, log, cuts, refresher(model, log, shown, paid, late=late))
        last = shown > 20
        ratio[late] = (said["purchase"].numpy()[last].sum() / np.isfinite(paid)[last].sum()).item()
    assert ratio["naive"] < 0.4
    assert all(abs(ratio[late] - 1) < 0.15 for late in ("wait", "fake negatives", "oracle")), ratio


def test_a_memory_brings_old_rows_back():
    model, log, shown, paid = small_log()
    seen = []

    class Spy(Refresher):
        def step(self, own, late, bought):
            seen.append((own, late, bought))

    weights = {"click": 1.0, "purchase": 1.0}
    how = {"lr": 1e-2, "weight_decay": 0.0, "weights": weights, "late": "oracle"}
    Spy(model, log, shown, paid, **how, memory=np.arange(500))(1000, 2000)
    assert all((own < 500).sum() == (own >= 1000).sum() for own, _, _ in seen)
    assert sorted(np.concatenate([own[own >= 1000] for own, _, _ in seen])) == list(range(1000, 2000))
    for _, late, bought in seen:
        assert np.array_equal(bought.numpy() > 0, paid[late] < np.where(late < 500, shown[1999], np.inf))


def test_a_refresh_learns():
    model, log, shown, paid = small_log()
    before = model.bottom[0].weight.clone()
    learn = refresher(model, log, shown, paid)
    for _ in range(8):
        learn(0, 3000)
    assert not torch.equal(before, model.bottom[0].weight)
    assert predict(model, log)["click"].mean().item() == pytest.approx(
        log.labels["click"].mean().item(), abs=0.05
    )


def test_psi_by_hand():
    old, new = np.repeat(["a", "b"], [80, 20]), np.repeat(["a", "b"], [50, 50])
    p, q = (np.array(x) / 101 for x in ((80.5, 20.5), (50.5, 50.5)))
    assert psi(old, new) == pytest.approx(((q - p) * np.log(q / p)).sum())
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000)
    assert psi(x, x) == 0
    assert psi(x, rng.normal(size=5000)) < 0.02
    assert psi(x, x + np.log(100)) > 5
    assert np.isfinite(psi(x, np.full(100, 9.0)))
    assert psi(np.zeros(10), np.zeros(10)) == 0


def test_calibration_z():
    p = np.full(10_000, 0.1)
    assert calibration_z(np.arange(10_000) < 1000, p) == pytest.approx(0)
    assert calibration_z(np.arange(10_000) < 1030, p) == pytest.approx(1)


def day_frames(rng, days, n=2400):
    parts = []
    for day in range(days):
        part = pd.DataFrame({"price": rng.normal(size=n), "kind": rng.choice(list("abcd"), n), "day": day})
        part["said_click"] = 1 / (1 + np.exp(2.5 - part["price"]))
        part["click"] = (rng.random(n) < part["said_click"]).astype(int)
        part["item_id"] = rng.integers(0, 900, n)
        part["top"] = np.arange(n) % 8 < 3
        parts.append(part)
    return parts


def test_the_watch_is_silent_on_twenty_quiet_days_and_sees_each_fault():
    frames = day_frames(np.random.default_rng(0), 27)
    quiet = [
        day_report(pd.concat(frames[d - 7 : d]), frames[d], ["price", "kind"]) for d in range(7, len(frames))
    ]
    assert len(quiet) == 20
    values = pd.DataFrame(quiet).drop(columns="worst").abs().max()
    assert values["inputs"] < 4
    assert values["scores"] < 4
    assert values["click"] < 4
    assert values["loss"] < 4
    past, today = pd.concat(frames[19:26]), frames[26]
    cents = day_report(past, today.assign(price=today["price"] + np.log(100)), ["price", "kind"])
    assert cents["worst"] == "price"
    assert cents["inputs"] > 20
    assert day_report(past, today.assign(kind="a"), ["price", "kind"])["worst"] == "kind"
    lost = day_report(past, today.assign(click=0), ["price", "kind"])
    assert lost["click"] < -8
    surprised = day_report(past, today.assign(click=1 - today["click"]), ["price", "kind"])
    assert surprised["loss"] > 8
    one = day_report(
        past, today.assign(item_id=np.where(today["top"], 1, today["item_id"])), ["price", "kind"]
    )
    assert one["coverage"] < -0.1
    scores = day_report(past, today.assign(said_click=today["said_click"] ** 2), ["price", "kind"])
    assert scores["scores"] > 20


def test_a_wrong_alarm_would_be_noticed():
    """The rule of the textbook, PSI above .25, cries on a quiet day when a column has many values and few rows."""
    rng = np.random.default_rng(0)
    frames = day_frames(rng, 8, 600)
    frames = [frame.assign(word=rng.choice(300, 600).astype(str)) for frame in frames]
    past, today = pd.concat(frames[:7]), frames[7]
    assert psi(past["word"], today["word"]) > 0.25
    assert day_report(past, today, ["word"])["inputs"] < 1.5
    assert day_report(past, today.assign(word="7"), ["word"])["inputs"] > 5
