"""The e-commerce case: no feature knows the future, no candidate moves a user-side answer, worth is the truth's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mtl_helpers.data import CATEGORIES, ShopConfig, make_world, shop_frame, simulate
from mtl_helpers.models.case import (
    candidates,
    case_data,
    case_frames,
    case_model,
    item_table,
    score_candidates,
    true_values,
)
from mtl_helpers.sweep import _stacks, sweep
from mtl_helpers.training import fit

CONFIG = ShopConfig(n_users=60, n_items=200, n_impressions=6_000, seed=3)


@pytest.fixture(scope="module")
def shop():
    return simulate(CONFIG)


@pytest.fixture(scope="module")
def frames(shop):
    return case_frames(shop)


@pytest.fixture(scope="module")
def data(frames):
    return case_data(frames, CONFIG.n_items)


@pytest.fixture(scope="module")
def items(shop, frames):
    return item_table(shop, frames["train"])


def test_next_item_is_the_next_click_and_stays_in_its_part(frames):
    whole = pd.concat(frames.values()).sort_values(["timestamp", "impression_id"])
    ends = {"train": frames["valid"]["timestamp"].min(), "valid": frames["test"]["timestamp"].min()}
    for part, frame in frames.items():
        first = ~frame.duplicated("session_id")
        assert frame.loc[~first, ["next_item", "next_category"]].isna().all(axis=None)
        for row in frame[first].sample(30, random_state=1).itertuples():
            later = whole[(whole["user_id"] == row.user_id) & (whole["session_start"] > row.session_start)]
            later = later[(later["click"] == 1) & (later["timestamp"] < ends.get(part, pd.Timestamp.max))]
            if len(later) and row.timestamp == row.session_start:
                assert row.next_item == later["item_id"].iloc[0]
                assert CATEGORIES[int(row.next_category)] == later["category"].iloc[0]
            else:
                assert np.isnan(row.next_item)


def test_item_table_is_cleaned_and_counts_training_clicks_only(shop, frames, items):
    assert items["item_id"].tolist() == list(range(CONFIG.n_items))
    assert items["clicks"].sum() == frames["train"]["click"].sum()
    world = make_world(CONFIG)
    assert (items["category"] == world.items["category"]).all()
    worst = (np.log(items["price"]) - np.log(world.items["price"])).abs().sort_values()
    assert worst.iloc[-2] < 0.01  # all but the one price that lost its decimal point


@pytest.fixture(scope="module")
def asked(shop):
    return candidates(shop, [5, 41])


def test_candidates_are_each_user_with_every_item_after_the_log(shop, frames, asked):
    whole = pd.concat(frames.values())
    assert len(asked) == 2 * CONFIG.n_items and asked["timestamp"].nunique() == 1
    assert (asked["position"] == 1).all() and (asked["session_start"] == asked["timestamp"]).all()
    assert (asked["timestamp"] > whole["timestamp"].max()).all()
    assert asked["user_id"].tolist() == [5] * CONFIG.n_items + [41] * CONFIG.n_items
    assert asked["item_id"].tolist() == [*range(CONFIG.n_items)] * 2
    assert set(whole) >= set(asked)


def test_candidates_know_the_whole_log_and_do_not_change_each_other(shop, asked):
    log = shop_frame(shop)
    clicks = log[(log["user_id"] == 41) & (log["click"] == 1)]
    mine = asked[asked["user_id"] == 41]
    assert (mine["user_past_clicks"] == len(clicks)).all()
    assert mine["last_sub_category"].unique().tolist() == [clicks["sub_category"].iloc[-1]]
    views = log[log["user_id"] == 41].groupby("item_id").size().reindex(range(CONFIG.n_items), fill_value=0)
    assert mine["item_seen"].to_numpy() == pytest.approx(np.log1p(views.to_numpy()))
    alone = candidates(shop, [41])
    for name in ("user_past_ctr", "item_past_ctr", "sub_clicks_week", "sub_bought"):
        assert alone[name].to_numpy() == pytest.approx(mine[name].to_numpy())


def test_no_candidate_moves_the_user_side_answers(data, items, asked):
    torch.manual_seed(0)
    model = case_model(data, items)
    numeric, categorical = data.encoder.transform(asked.head(len(items)))
    logits = model(numeric, categorical)
    assert logits["next_item"].shape == (len(items), len(items))
    for name in ("next_category", "next_item"):
        assert torch.allclose(logits[name], logits[name][:1].expand_as(logits[name]), atol=1e-5)
    assert logits["purchase"].std() > 1e-4  # planted opposite: this one must move


def test_scores_of_candidates_are_the_models_answers(data, items, asked):
    torch.manual_seed(0)
    model = case_model(data, items).eval()
    signals = score_candidates(model, data, asked, items)
    numeric, categorical = data.encoder.transform(asked)
    logits = {name: value.detach().numpy() for name, value in model(numeric, categorical).items()}
    place = len(items) + 11
    assert signals["purchase"][1, 11] == pytest.approx(1 / (1 + np.exp(-logits["purchase"][place])), rel=1e-5)
    odds = np.exp(logits["next_item"][place].astype(float))
    assert signals["next"][1, 11] == pytest.approx(odds[11] / odds.sum(), rel=1e-4)
    odds = np.exp(logits["next_category"][place].astype(float))
    own = CATEGORIES.index(items["category"][11])
    assert signals["category"][1, 11] == pytest.approx(odds[own] / odds.sum(), rel=1e-4)


def test_next_item_is_a_dot_product_and_starts_at_popularity(data, items):
    torch.manual_seed(0)
    model = case_model(data, items)
    numeric, categorical = data.test.numeric[:4], data.test.categorical[:4]
    by_hand = model.user_vectors(numeric, categorical) @ model.item_vectors().T + model.bias
    assert torch.allclose(by_hand, model(numeric, categorical)["next_item"], atol=1e-6)
    assert model.bias.argmax() == items["clicks"].to_numpy().argmax()


def test_a_sweep_takes_its_models_together_and_each_is_that_of_its_own_run(data, items):
    def build():
        return case_model(data, items)

    train, settings = data.train.take(slice(0, 900)), {"epochs": 2, "batch_size": 256, "progress": False}
    weightings = [dict.fromkeys(data.train.labels, 1.0) | {"next_item": weight} for weight in (0.1, 1.0)]
    assert _stacks(build(), next(train.batches(5, shuffle=False)))
    result = sweep(build, train, weightings=weightings, **settings)
    for row, weights in enumerate(weightings):
        torch.manual_seed(0)
        alone = build()
        fit(alone, train, weights=weights, **settings)
        for ours, theirs in zip(result.model(row).parameters(), alone.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_user_ids_are_read_only_when_asked(data, items):
    changed = data.test.take(slice(0, 50))
    other = changed.categorical.clone()
    other[:, 0] = 1 + (other[:, 0] % 20)
    for asked in (False, True):
        torch.manual_seed(0)
        model = case_model(data, items, user_ids=asked)
        a, b = (model(changed.numeric, codes)["purchase"] for codes in (changed.categorical, other))
        assert torch.equal(a, b) is not asked


def test_truth_of_candidates_is_the_worlds(asked):
    world, row = make_world(CONFIG), asked.iloc[CONFIG.n_items + 5]
    moment = row["user_id"], 5, row["timestamp"]
    for place in (1, 6):
        truth = true_values(world, asked.assign(position=place))
        click, bought = world.probabilities(*moment, place, row["surface"])
        assert truth["click"][1, 5] == pytest.approx(float(click))
        assert truth["purchase"][1, 5] == pytest.approx(float(click * bought))


def test_a_catalogue_with_a_gap_is_refused(shop, frames):
    from dataclasses import replace

    with pytest.raises(ValueError, match="without a gap"):
        item_table(replace(shop, items=shop.items[shop.items["item_id"] != 7]), frames["train"])
