"""The simulated shop: its files, its truth, its dirt, and features that never look ahead."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtl_helpers.data import (
    CATEGORIES,
    CHANNELS,
    PRIOR_CTR,
    PRIOR_VIEWS,
    SHOP_CATEGORICAL,
    SHOP_FOLDER,
    SHOP_NUMERIC,
    SHOP_TASKS,
    Shop,
    ShopConfig,
    Task,
    bayes_auc,
    check_leaks,
    clean_impressions,
    clean_items,
    clean_users,
    load_shop,
    make_world,
    mask_future_labels,
    prepare,
    shop_frame,
    shop_splits,
    simulate,
    write_shop,
)
from mtl_helpers.data import shop as shop_module

TABLES = ("users", "items", "impressions", "truth")
SMALL = ShopConfig(
    n_users=60, n_items=40, n_impressions=2_000, click_rate=0.2, purchase_rate=0.06, days=5, seed=3
)
HISTORY = ["user_past_clicks", "user_past_ctr", "item_past_ctr", "user_category_past_clicks"]


@pytest.fixture(scope="module")
def shop() -> Shop:
    return load_shop()


@pytest.fixture(scope="module")
def frame(shop) -> pd.DataFrame:
    return shop_frame(shop)


@pytest.fixture(scope="module")
def small() -> Shop:
    return simulate(SMALL)


def same(left: Shop, right: Shop) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name))


# ------------------------------------------------------------------------------------------------- files


def test_shipped_files_regenerate_to_the_same_bytes(tmp_path):
    paths = write_shop(ShopConfig(), tmp_path / "new" / "folder")
    assert {path.name for path in paths} == {"config.json", *(f"{name}.csv.gz" for name in TABLES)}
    for path in paths:
        new, old = path.read_bytes(), (SHOP_FOLDER / path.name).read_bytes()
        if path.suffix == ".gz":
            assert new[3:8] == old[3:8] == b"\0" * 5, "the header names no file and no time"
            new_text, old_text = gzip.decompress(new), gzip.decompress(old)
            assert new_text == old_text
            assert b"\r" not in new_text
            same_zlib = shop_module._gzip(old_text) == old
            assert new == old or not same_zlib
        else:
            assert new == old
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in SHOP_FOLDER.iterdir()) <= 4e6


def test_reading_back_gives_what_was_simulated(shop):
    same(shop, simulate(ShopConfig()))
    assert shop.config == ShopConfig()
    assert "raw rows" in repr(shop)


def test_without_files_the_default_shop_is_simulated(monkeypatch, tmp_path, shop):
    monkeypatch.setattr(shop_module, "SHOP_FOLDER", tmp_path / "nowhere")
    same(shop, load_shop())


def test_custom_shop_survives_the_files(tmp_path, small):
    write_shop(SMALL, tmp_path)
    read = load_shop(tmp_path)
    same(read, small)
    assert read.config == SMALL
    (tmp_path / "config.json").unlink()
    assert load_shop(tmp_path).config is None


def test_damaged_files_do_not_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="users.csv.gz"):
        load_shop(tmp_path / "nowhere")
    write_shop(SMALL, tmp_path)
    for file, old, new, says in (
        ("users", "age,", "years,", "age"),
        ("items", "\n0,", "\nzero,", "zero"),
        ("items", ".", "?", r"\?"),
    ):
        path = tmp_path / f"{file}.csv.gz"
        whole = path.read_bytes()
        path.write_bytes(gzip.compress(gzip.decompress(whole).replace(old.encode(), new.encode(), 1)))
        with pytest.raises(ValueError, match=says):
            load_shop(tmp_path)
        path.write_bytes(whole)
    path = tmp_path / "truth.csv.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((EOFError, ValueError)):
        load_shop(tmp_path)


# ------------------------------------------------------------------------------------------------- simulation


def test_rates_dirt_and_shape(shop):
    log = shop.impressions
    clean = clean_impressions(log)
    assert len(clean) == len(shop.truth) == 80_000
    assert 0.005 < log.duplicated().mean() < 0.015
    assert clean["click"].mean() == pytest.approx(0.06, rel=0.05)
    assert clean["purchase"].mean() == pytest.approx(0.015, rel=0.1)
    assert not (clean["purchase"] > clean["click"]).any()
    assert (clean["dwell_seconds"].notna() == (clean["click"] == 1)).all()
    dwell = clean[clean["click"] == 1].groupby("purchase")["dwell_seconds"].median()
    assert dwell[1] > dwell[0]
    assert clean["timestamp"].is_monotonic_increasing
    sessions = clean.groupby("session_id")
    assert (sessions["position"].agg(list).map(tuple) == (1, 2, 3, 4, 5)).all()
    assert (sessions["item_id"].nunique() == 5).all()
    assert (sessions[["user_id", "channel", "timestamp"]].nunique() == 1).all(axis=None)
    assert 0.06 < shop.users["age"].isna().mean() < 0.10
    assert (shop.users["age"] == 999).any()
    assert set(shop.items["price_unit"]) == {"EUR", "cent"}
    assert shop.items["category"].nunique() > 8
    assert shop.items["rating"].isna().any()


@pytest.mark.parametrize(
    ("click_rate", "purchase_rate", "seed"), [(0.06, 0.015, 1), (0.3, 0.2, 2), (0.02, 0.001, 5)]
)
def test_intercepts_hold_the_rates(click_rate, purchase_rate, seed):
    config = ShopConfig(click_rate=click_rate, purchase_rate=purchase_rate, seed=seed)
    truth = simulate(config).truth
    assert truth["p_click"].mean() == pytest.approx(click_rate, rel=0.05)
    assert truth["p_purchase"].mean() == pytest.approx(purchase_rate, rel=0.08)


@pytest.mark.parametrize("rho", [-1, -0.5, 0, 0.8, 1])
def test_relatedness_is_the_correlation_of_tastes(rho):
    world = make_world(ShopConfig(n_impressions=5, relatedness=rho))
    found = np.corrcoef(world.click_taste.ravel(), world.purchase_taste.ravel())[0, 1]
    assert found == pytest.approx(rho, abs=1e-9)
    assert world.purchase_taste.std() == pytest.approx(1)


def test_truth_is_calibrated(shop):
    log = clean_impressions(shop.impressions).merge(shop.truth, on="impression_id", validate="1:1")
    clicked = log[log["click"] == 1]
    for rows, label, p in (
        (log, "click", "p_click"),
        (log, "purchase", "p_purchase"),
        (clicked, "purchase", "p_purchase_given_click"),
    ):
        for part in [rows, *(rows[pd.qcut(rows[p], 10, labels=False) == k] for k in range(10))]:
            deviation = np.sqrt((part[p] * (1 - part[p])).sum())
            assert abs(part[label].sum() - part[p].sum()) < 4 * deviation
    product = shop.truth["p_click"] * shop.truth["p_purchase_given_click"]
    assert np.abs(product - shop.truth["p_purchase"]).max() < 2e-6


def test_bayes_auc_is_a_ceiling(shop, frame):
    ceiling = bayes_auc(shop)
    assert 0.75 < ceiling["click"] < 0.9
    assert 0.8 < ceiling["purchase"] < 0.95
    assert 0.7 < ceiling["purchase_given_click"] < 0.9
    from sklearn.metrics import roc_auc_score

    truth = frame.merge(shop.truth, on="impression_id")
    assert ceiling["purchase"] == pytest.approx(roc_auc_score(truth["purchase"], truth["p_purchase"]))
    for name in HISTORY:
        assert roc_auc_score(frame["click"], frame[name]) < ceiling["click"]


def test_world_answers_for_any_impression(shop):
    world = make_world(shop.config)
    log = clean_impressions(shop.impressions).merge(shop.truth, on="impression_id")
    hour = log["timestamp"].dt.hour.to_numpy()
    columns = [log[name].to_numpy() for name in ("user_id", "item_id", "position")]
    p_click, p_purchase = world.probabilities(*columns, hour, log["channel"].to_numpy())
    np.testing.assert_allclose(p_click, log["p_click"], atol=6e-7)
    np.testing.assert_allclose(p_purchase, log["p_purchase_given_click"], atol=6e-7)
    users, items = np.arange(7)[:, None], np.arange(9)
    p_click, p_purchase = world.probabilities(users, items, position=np.arange(1, 10), channel="web")
    assert p_click.shape == p_purchase.shape == (7, 9)
    assert world.probabilities(0, 0, 1)[0] > world.probabilities(0, 0, 10)[0]
    assert world.probabilities(3, 4, 2, 20, "web") == world.probabilities(3, 4, 2, 20, CHANNELS.index("web"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"user": 60}, ValueError, "user runs from 60 to 60, expected 0 to 59"),
        ({"item": -1}, ValueError, "item runs from -1"),
        ({"position": 0}, ValueError, "expected 1 or more"),
        ({"hour": 24}, ValueError, "expected 0 to 23"),
        ({"channel": "fax"}, ValueError, "Unknown channel 'fax'"),
        ({"channel": 3}, ValueError, "expected 0 to 2"),
        ({"user": 1.5}, TypeError, "whole numbers"),
    ],
)
def test_world_refuses_what_does_not_exist(arguments, error, message):
    with pytest.raises(error, match=message):
        make_world(SMALL).probabilities(**{"user": 0, "item": 0, **arguments})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n_users": 3}, "n_users is 3, expected 10 or more"),
        ({"n_impressions": 1_001}, "multiple of 5"),
        ({"n_impressions": 0}, "multiple of 5"),
        ({"n_categories": 13}, "n_categories is 13"),
        ({"days": 0}, "days is 0"),
        ({"relatedness": 1.2}, "relatedness is 1.2"),
        ({"relatedness": float("nan")}, "relatedness is nan"),
        ({"click_rate": 0.01}, "below click_rate"),
    ],
)
def test_config_refuses_bad_knobs(knobs, message):
    with pytest.raises(ValueError, match=message):
        ShopConfig(**knobs)


@pytest.mark.parametrize(
    "config",
    [
        ShopConfig(n_users=10, n_items=20, n_impressions=5, n_categories=2, days=1, seed=np.int64(4)),
        ShopConfig(n_users=12, n_items=20, n_impressions=500, n_categories=12, relatedness=-1),
    ],
)
def test_smallest_shops_work(config, tmp_path):
    write_shop(config, tmp_path)
    shop = load_shop(tmp_path)
    assert shop.config == config
    assert len(shop_frame(shop)) == config.n_impressions
    assert (
        set(clean_items(shop.items)["category"])
        == set(config.categories)
        == set(CATEGORIES[: config.n_categories])
    )


# ------------------------------------------------------------------------------------------------- cleaning


def test_cleaning_undoes_the_dirt(shop):
    world = make_world(shop.config)
    items, users = clean_items(shop.items), clean_users(shop.users)
    assert (items["category"] == world.items["category"]).all()
    off = (items["price"] / world.items["price"] - 1).abs() > 1e-3
    assert off.sum() == 1, "all prices but the outlier come back"
    dirty = shop.items["price"] * shop.items["price_unit"].map({"EUR": 1, "cent": 0.01})
    assert (dirty / items["price"]).max() > 20
    known = users["age"].notna()
    assert (users.loc[known, "age"] == world.users.loc[known, "age"]).all()
    assert 0 < (shop.users["age"].notna() & ~known).sum() < 60
    assert "price_unit" not in items


def change(table: pd.DataFrame, row: int, column: str, value) -> pd.DataFrame:
    table = table.copy()
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("items", 3, "price_unit", "USD", "No factor for unit USD"),
        ("items", 3, "category", "boats", "category boats is unknown"),
        ("items", 3, "category", None, "category .* is unknown"),
        ("items", 3, "item_id", 4, "item_id 4 stands for two different rows"),
        ("users", 3, "user_id", 4, "user_id 4 stands for two different rows"),
        ("users", 3, "user_id", 4_000, "user_id 3 is in the log"),
        ("items", 3, "item_id", 4_000, "item_id 3 is in the log"),
        ("impressions", 3, "timestamp", "yesterday", "yesterday"),
        ("impressions", 3, "timestamp", "2025-03-09T00:00:00", "has two timestamps"),
        ("impressions", 3, "impression_id", 4, "impression_id 4 stands for two different rows"),
        ("impressions", 3, "click", 2, "click 2 is not 0 or 1"),
        ("impressions", 0, "purchase", 1, "bought without a click"),
    ],
)
def test_contradictions_get_a_clear_error(small, table, row, column, value, message):
    if (table, column) == ("impressions", "purchase"):
        row = int(small.impressions.index[small.impressions["click"] == 0][0])
    with pytest.raises(ValueError, match=message):
        shop_frame(replace(small, **{table: change(getattr(small, table), row, column, value)}))


def test_cleaning_leaves_its_input_alone(small):
    before = {name: getattr(small, name).copy() for name in TABLES}
    shop_frame(small)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(small, name), before[name])


# ------------------------------------------------------------------------------------------------- features


def test_history_and_next_click_equal_brute_force(small):
    frame = shop_frame(small)
    moment, click = frame["timestamp"], frame["click"]
    for _, row in frame.iterrows():
        earlier, later = moment < row["timestamp"], moment > row["timestamp"]
        mine, this = frame["user_id"] == row["user_id"], frame["item_id"] == row["item_id"]
        assert row["user_past_clicks"] == click[earlier & mine].sum()
        for name, rows in (("user_past_ctr", earlier & mine), ("item_past_ctr", earlier & this)):
            smooth = (click[rows].sum() + PRIOR_VIEWS * PRIOR_CTR) / (rows.sum() + PRIOR_VIEWS)
            assert row[name] == pytest.approx(smooth)
        same_category = mine & (frame["category"] == row["category"])
        assert row["user_category_past_clicks"] == click[earlier & same_category].sum()
        following = frame[later & mine & (click == 1)].sort_values(["timestamp", "session_id", "position"])
        if len(following):
            assert CATEGORIES[int(row["next_category"])] == following["category"].iloc[0]
            assert row["next_click_time"] == following["timestamp"].iloc[0]
        else:
            assert np.isnan(row["next_category"]) and pd.isna(row["next_click_time"])


def test_later_rows_do_not_change_earlier_features(small):
    before = shop_frame(small)
    cut = before["timestamp"].iloc[1_000]
    log = small.impressions.copy()
    later = pd.to_datetime(log["timestamp"]) >= cut
    log.loc[later, ["click", "purchase"]] = 1 - log.loc[later, ["click", "click"]].to_numpy()
    after = shop_frame(replace(small, impressions=log))
    # the rows at the cut itself see neither their own outcome nor that of their session
    features = list(dict.fromkeys([*SHOP_NUMERIC, *SHOP_CATEGORICAL]))
    rows = before["timestamp"] <= cut
    assert rows.sum() > 1_000
    pd.testing.assert_frame_equal(before.loc[rows, features], after.loc[rows, features])
    later_rows = before["timestamp"] > cut
    assert (before.loc[later_rows, HISTORY] != after.loc[later_rows, HISTORY]).any(axis=None)


def test_sessions_in_the_same_second_do_not_see_each_other(small):
    log = small.impressions.drop_duplicates().copy()
    log["user_id"], log["timestamp"], log["click"], log["purchase"] = 0, log["timestamp"].iloc[0], 1, 0
    frame = shop_frame(replace(small, impressions=log))
    assert (frame[["user_past_clicks", "user_category_past_clicks"]] == 0).all(axis=None)
    assert np.allclose(frame[["user_past_ctr", "item_past_ctr"]], PRIOR_CTR)
    assert frame["next_category"].isna().all()


def test_frame_holds_what_the_constants_name(shop, frame):
    assert len(frame) == 80_000
    assert {*SHOP_NUMERIC, *SHOP_CATEGORICAL, *(task.label_column for task in SHOP_TASKS)} <= set(frame)
    assert not {"dwell_seconds", "next_click_time", "session_id"} & {*SHOP_NUMERIC, *SHOP_CATEGORICAL}
    assert not {name for name in frame if name.startswith("p_")}, "the truth stays out of the frame"
    complete = frame[list({*SHOP_NUMERIC, *SHOP_CATEGORICAL} - {"age", "rating"})]
    assert not complete.isna().any(axis=None)
    assert np.isfinite(frame["log_price"]).all()
    by_item = frame.drop_duplicates("item_id").groupby("category")["price_vs_category"].mean()
    assert by_item.abs().max() < 0.15  # not every item was shown
    assert frame.loc[frame["age"].isna(), "age_group"].eq("unknown").all()
    assert frame.groupby("age_group")["age"].min().drop("unknown").tolist() == [18, 25, 35, 45, 55]
    assert frame["weekday"].iloc[0] == 0 and frame["timestamp"].iloc[0].year == 2025


def test_time_split_hides_labels_from_the_future(frame):
    parts = shop_splits(frame)
    assert sum(map(len, parts.values())) == len(frame)
    for name, following in (("train", "valid"), ("valid", "test")):
        end = parts[following]["timestamp"].min()
        assert parts[name]["timestamp"].max() < end
        assert parts[name]["next_click_time"].max() < end
        whole = frame.loc[parts[name].index]
        hidden = whole["next_category"].notna() & parts[name]["next_category"].isna()
        assert hidden.sum() > 100
        assert (whole.loc[hidden, "next_click_time"] >= end).all()
    pd.testing.assert_frame_equal(parts["test"], frame.loc[parts["test"].index])
    assert mask_future_labels(frame, None) is frame
    masked = mask_future_labels(frame, "2025-03-10")
    assert masked["next_click_time"].max() < pd.Timestamp("2025-03-10")
    assert len(masked) == len(frame)


def test_user_split_keeps_users_together(frame):
    parts = shop_splits(frame, "user", seed=1)
    users = [set(part["user_id"]) for part in parts.values()]
    assert not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])
    assert sum(map(len, parts.values())) == len(frame)
    with pytest.raises(ValueError, match="split is 'random'"):
        shop_splits(frame, "random")


def test_frame_goes_through_prepare(frame):
    parts = shop_splits(frame)
    features = (*SHOP_NUMERIC, *SHOP_CATEGORICAL)
    assert check_leaks(parts, features, SHOP_TASKS, time="timestamp")["passed"].all()
    report = check_leaks(parts, (*features, "dwell_seconds"), SHOP_TASKS, time="timestamp")
    assert "dwell_seconds alone" in " ".join(report.loc[~report["passed"], "finding"])
    tasks = (*SHOP_TASKS, Task("dwell_seconds", kind="regression"))
    data = prepare(parts, tasks, SHOP_NUMERIC, SHOP_CATEGORICAL)
    assert set(data.train.masks) == {"next_category", "dwell_seconds"}
    assert data.train.numeric.shape == (len(parts["train"]), len(SHOP_NUMERIC))
    assert data.train.masks["dwell_seconds"].sum() == data.train.labels["click"].sum()
