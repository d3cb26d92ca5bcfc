"""The simulated shop: realism, exact truth, same bytes, dirt, and features that never look ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mtl_helpers.data import (
    CATEGORIES,
    PAGE,
    SHOP_CATEGORICAL,
    SHOP_COUNTS,
    SHOP_NUMERIC,
    SHOP_TASKS,
    SURFACES,
    TIERS,
    ShopConfig,
    check_leaks,
    clean_impressions,
    clean_items,
    clean_users,
    history_sequences,
    load_shop,
    make_world,
    pictures,
    shop_frame,
    shop_splits,
    simulate,
    write_shop,
)
from mtl_helpers.data.shop_content import NOISE, WORDS, describe
from mtl_helpers.data.shop_world import AGE_EDGES, DIRT, PARENT, PICTURES, SUBS, Run, generator, sigmoid
from mtl_helpers.metrics import auc, expected_auc, expected_log_loss, log_loss

SMALL = ShopConfig(n_users=150, n_items=240, n_impressions=12_000, days=14, click_rate=0.15, seed=3)


@pytest.fixture(scope="module")
def shop():
    return simulate(SMALL)


@pytest.fixture(scope="module")
def world():
    return make_world(SMALL)


@pytest.fixture(scope="module")
def frame(shop):
    return shop_frame(shop)


@pytest.mark.slow
def test_the_same_config_gives_the_same_bytes_and_a_small_folder(tmp_path):
    first, again = (write_shop(folder=tmp_path / name) for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert sum(path.stat().st_size for path in first) <= 7e6
    assert (tmp_path / "first" / "pictures.png").stat().st_size <= 1.5e6


def test_a_shop_comes_back_from_its_files_and_another_seed_is_another_shop(tmp_path, shop):
    write_shop(SMALL, tmp_path)
    back = load_shop(tmp_path)
    assert back.config == SMALL and simulate(replace(SMALL, seed=4)).users["age"].ne(shop.users["age"]).any()
    for name in ("users", "items", "impressions", "truth", "hidden"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(shop, name), check_dtype=False)
    (tmp_path / "truth.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="truth"):
        load_shop(tmp_path)


@pytest.mark.parametrize("change", ["n_impressions 100", "relatedness 1.5", "click_rate 0", "n_items 20"])
def test_knobs_outside_their_range(change):
    name, value = change.split()
    with pytest.raises(ValueError, match="ShopConfig"):
        replace(SMALL, **{name: float(value)})


def test_dirt_as_promised(shop, world):
    log, items, users = shop.impressions, shop.items, shop.users
    assert 0.004 < log.duplicated().mean() < 0.02
    assert 0.03 < users["age"].isna().mean() < 0.15 and (users["age"].isin([0, 999])).any()
    assert set(items["price_unit"]) == {"EUR", "cent"} and items["category"].nunique() > len(CATEGORIES)
    clean = clean_items(items)
    assert clean["category"].equals(world.items["category"]) and clean["price"].max() < 1000
    moved = ~np.isclose(clean["price"], world.items["price"], atol=0.006)
    assert moved.sum() == 1  # the lost decimal point
    assert clean_users(users)["age"].dropna().between(14, 100).all()
    assert not clean_impressions(log)["impression_id"].duplicated().any()


def test_the_truth_of_a_logged_row_is_the_worlds(world, shop):
    rows = np.random.default_rng(0).integers(0, SMALL.n_impressions, 2000)
    log = world.log
    surface = np.array(SURFACES)[log["surface"][rows]]
    found = world.probabilities(*(log[n][rows] for n in ("user", "item", "moment", "position")), surface)
    for p, name in zip(found, ("p_click", "p_purchase_given_click"), strict=True):
        np.testing.assert_allclose(p, log[name][rows], atol=1e-6)
        np.testing.assert_allclose(p, shop.truth[name].to_numpy()[rows], atol=2e-6)


def test_position_is_a_factor_of_examination(world):
    first, fifth = (world.probabilities(3, 7, 500_000, position)[0] for position in (1, 5))
    assert fifth / first == pytest.approx(5**-0.45)


def test_the_truth_is_calibrated(world):
    log = world.log
    bought = log["p_purchase_given_click"][log["click"]], log["purchase"][log["click"]]
    for chance, happened in ((log["p_click"], log["click"]), bought):
        for part in np.array_split(np.argsort(chance), 5):
            p = chance[part]
            assert abs(happened[part].mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum()) / len(p)


def test_relatedness_is_monotone():
    def agreement(rho: float) -> float:
        log = make_world(replace(SMALL, relatedness=rho)).log
        return expected_auc(log["p_purchase_given_click"], log["p_click"], log["p_click"])

    low, middle, high = (agreement(rho) for rho in (-1, 0, 1))
    assert low < middle - 0.04 < high - 0.08


def test_expected_metrics_are_those_of_drawn_labels():
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 4, 1500)
    score = p + 0.1 * rng.standard_normal(1500)
    guess = np.clip(score, 0.01, 0.99)
    drawn = [(rng.random(1500) < p).astype(float) for _ in range(200)]
    aucs, losses = [auc(y, score) for y in drawn], [log_loss(y, guess) for y in drawn]
    assert np.mean(aucs) == pytest.approx(expected_auc(p, score), abs=4 * np.std(aucs) / np.sqrt(200))
    error = 4 * np.std(losses) / np.sqrt(200)
    assert np.mean(losses) == pytest.approx(expected_log_loss(p, guess), abs=error)
    assert expected_auc(drawn[0], score) == pytest.approx(aucs[0])


def test_features_look_at_earlier_sessions_only(frame):
    click, moment = frame["click"] == 1, frame["timestamp"]
    for _, row in frame.sample(500, random_state=0).iterrows():

        def same(*names, row=row):
            return (frame[[*names]] == row[[*names]]).all(axis=1)

        def days(moments, row=row):
            return (row["session_start"] - moments).dt.total_seconds() / 86_400

        past = moment < row["session_start"]
        mine, item, sub = past & same("user_id"), past & same("item_id"), same("user_id", "sub_category")
        assert row["user_past_clicks"] == (mine & click).sum()
        assert row["user_category_past_clicks"] == (mine & click & same("category")).sum()
        assert row["item_past_ctr"] == pytest.approx(((item & click).sum() + 1.4) / (item.sum() + 20))
        assert row["item_seen"] == pytest.approx(np.log1p((item & mine).sum()))
        assert row["sub_clicks_day"] == pytest.approx(
            (0.5 ** days(moment[past & sub & click])).sum(), abs=1e-6
        )
        paid = frame.loc[sub & (frame["purchase_time"] < row["session_start"]), "purchase_time"]
        assert row["sub_bought"] == pytest.approx((0.5 ** (days(paid) / 15)).sum(), abs=1e-6)
        last = frame.loc[mine & click, "sub_category"]
        assert row["last_sub_category"] == (last.iloc[-1] if len(last) else "none")


@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_row_of_nobody_is_refused(shop, name):
    log = shop.impressions.assign(**{name: shop.impressions[name].replace(5, 99_999)})
    with pytest.raises(ValueError, match=f"{name} 99999"):
        shop_frame(replace(shop, impressions=log))


def test_changing_the_future_changes_no_feature(shop, frame):
    cut = frame["session_start"].sort_values().iloc[len(frame) // 2]
    log = shop.impressions.copy()
    later = pd.to_datetime(log["timestamp"]) >= cut
    log.loc[later, "click"] = 1 - log.loc[later, "click"]
    log.loc[later, ["purchase", "purchase_time"]] = [0, None]
    log.loc[log["click"] == 0, ["purchase", "purchase_time"]] = [0, None]
    other = shop_frame(replace(shop, impressions=log))
    columns = [*SHOP_NUMERIC, *SHOP_CATEGORICAL]
    past = frame["session_start"] < cut
    pd.testing.assert_frame_equal(frame.loc[past, columns], other.loc[past, columns])


def test_history_sequences_hold_the_last_clicks(frame):
    found = history_sequences(frame, length=5)
    for i in np.random.default_rng(0).integers(0, len(frame), 300):
        row = frame.iloc[i]
        past = (frame["user_id"] == row["user_id"]) & (frame["timestamp"] < row["session_start"])
        last = frame[past & (frame["click"] == 1)].tail(5).iloc[::-1]
        assert found["item"][i].tolist() == [*(last["item_id"] + 1), *[0] * (5 - len(last))]
        hours = (row["session_start"] - last["timestamp"]).dt.total_seconds() / 3600
        np.testing.assert_allclose(found["hours"][i, : len(last)], hours, rtol=1e-5)
        paid = last["purchase_time"] < row["session_start"]
        assert found["bought"][i].tolist() == [*paid, *[False] * (5 - len(last))]


def test_labels_that_look_ahead(frame):
    for _, row in frame.sample(200, random_state=1).iterrows():
        later = (frame["user_id"] == row["user_id"]) & (frame["session_start"] > row["session_start"])
        later = frame[later & (frame["click"] == 1)].sort_values(["session_start", "timestamp", "position"])
        for first in later.head(1).itertuples():
            assert CATEGORIES[int(row["next_category"])] == first.category
            assert row["next_item"] == first.item_id and row["next_click_time"] == first.timestamp
        assert len(later) or row[["next_category", "next_item"]].isna().all()
        week = row["session_start"], row["session_start"] + pd.Timedelta("7D")
        paid = (frame["user_id"] == row["user_id"]) & frame["purchase_time"].between(*week, "left")
        assert np.isnan(row["spend_7d"]) or row["spend_7d"] == pytest.approx(frame["price"][paid].sum())
    assert 0.1 < frame["spend_7d"].isna().mean() < 0.9 and (frame["spend_7d"] > 0).any()


def test_labels_are_cut_at_the_end_of_their_part(frame):
    parts = shop_splits(frame)
    end = parts["valid"]["timestamp"].min()
    train = parts["train"]
    assert train["timestamp"].max() < end
    assert (train["next_click_time"].dropna() < end).all() and train["next_category"].notna().any()
    assert train["purchase"].notna().all()
    assert (train.loc[train["spend_7d"].notna(), "session_start"] + pd.Timedelta("7D") <= end).all()
    assert (train.loc[train["purchase"] == 1, "purchase_time"] < end).all()
    assert (
        frame.loc[train.index, "purchase"] > train["purchase"]
    ).any()  # in by the end of the log, not by then
    pending = train["timestamp"] + pd.Timedelta("4D") > end
    careful = shop_splits(frame, pending="unknown")["train"]["purchase"]
    assert careful[pending].isna().all() and careful[~pending].equals(train.loc[~pending, "purchase"])
    assert parts["valid"]["purchase"].equals(frame.loc[parts["valid"].index, "purchase"])
    with pytest.raises(ValueError, match="pending"):
        shop_splits(frame, pending="maybe")
    by_user = shop_splits(frame, split="user")
    assert not set(by_user["train"]["user_id"]) & set(by_user["test"]["user_id"])


def test_leaks_are_caught_and_clean_features_are_not(frame):
    parts = shop_splits(frame)
    tasks, features = SHOP_TASKS[:2], [*SHOP_NUMERIC, *SHOP_CATEGORICAL]
    assert check_leaks(parts, features, tasks, time="timestamp")["passed"].all()
    leaks = {
        "dwell": lambda part: part["dwell_seconds"],
        "clicks_of_it": lambda part: (
            part["click"] + 0.1 * part.groupby("session_id")["click"].transform("sum")
        ),
        "order_id": lambda part: part["impression_id"].where(part["purchase"] == 1),
    }
    for name, leak in leaks.items():
        leaking = {key: part.assign(**{name: leak(part)}) for key, part in parts.items()}
        found = check_leaks(leaking, [*features, name], tasks, time="timestamp")
        assert not found["passed"].all() and name in " ".join(found["finding"])


def test_words_can_be_kept_out():
    hidden = np.random.default_rng(0).standard_normal((200, 5))
    products = ["lamps"] * 200, ["brand-01"] * 200, hidden
    texts = (describe(*products, np.random.default_rng(1), unseen)["description"] for unseen in (False, True))
    seen, unseen = (" ".join(text).lower() for text in texts)
    for levels in WORDS.values():
        for *known, kept_out in levels:
            assert kept_out == "" or (kept_out not in seen.split(".") and f" {kept_out} " not in seen)
            assert all(word == "" or f" {word} " not in unseen for word in known)


def test_pictures_lie_in_the_order_of_the_products(shop):
    sheet = pictures(shop)
    assert sheet.shape == (-(-SMALL.n_items // 40) * 32, 1280, 3) and sheet.dtype == np.uint8
    assert np.array_equal(sheet, pictures(shop))
    assert len(SUBS) == 32 and DIRT != PICTURES


class Rivals(Run):
    """A shop in which, from day 30 on, the old ranker's 40 candidates are also ranked by the truth, by chance, and by
    a model that was fitted on what the shop could know of the first 30 days: expected purchases on a page of 8."""

    def __init__(self, world) -> None:
        self.rows, self.models, self.gains = [], None, dict.fromkeys(("old", "truth", "random", "model"), 0.0)
        self.chance = np.random.default_rng(0)
        self.tier = np.eye(4)[pd.Index(TIERS).get_indexer(world.users["loyalty_tier"])]
        self.age = np.eye(5)[np.searchsorted(AGE_EDGES[1:-1], world.users["age"], side="right")]
        super().__init__(world)

    def rank(self, user, day, surface):
        pool, score = super().rank(user, day, surface)
        who, sub, world = user[:, None], self.world.sub[pool], self.world
        state = self.excitement[who, sub], self.satiation[who, sub], self.seen[who, pool]
        odds = world.utilities(who, pool, day, (surface == 2)[:, None], self.mission[who], *state)
        click, purchase = (sigmoid(value) for value in odds)
        known, looked = self._known(user, pool, *state), np.arange(1, PAGE + 1) ** -0.45
        if day < 30:
            shown, place = known[:, :PAGE], np.zeros((len(user), PAGE, 1)) + np.log(looked)[:, None]
            clicked = self.chance.random((len(user), PAGE)) < click[:, :PAGE] * looked
            bought = clicked & (self.chance.random(clicked.shape) < purchase[:, :PAGE])
            shown = np.concatenate([shown, place], -1).reshape(clicked.size, -1)
            self.rows.append((shown, clicked.ravel(), bought.ravel()))
        elif len(user):
            if self.models is None:
                x, y, z = (np.concatenate(part) for part in zip(*self.rows, strict=True))
                pairs, kind = ((x, y), (x[y], z[y])), LogisticRegression(C=0.03, max_iter=200)
                self.models = [make_pipeline(StandardScaler(), clone(kind)).fit(*pair) for pair in pairs]
            top = np.concatenate([known, np.zeros((*pool.shape, 1))], -1).reshape(pool.size, -1)
            fitted = np.prod([model.predict_proba(top)[:, 1] for model in self.models], 0).reshape(pool.shape)
            value, old = click * purchase, -np.arange(pool.size).reshape(pool.shape)
            rivals = {"old": old, "truth": value, "random": self.chance.random(pool.shape), "model": fitted}
            for name, order in rivals.items():
                best = np.argsort(-order, axis=1)[:, :PAGE]
                self.gains[name] += (np.take_along_axis(value, best, 1) * looked).sum()
        return pool, score

    def _known(self, user, pool, excitement, satiation, seen) -> np.ndarray:
        """What a shop knows of candidates (n, 40): counts, prices, and tastes by age group."""
        world, sub = self.world, self.world.sub[pool]
        kin = self.affinity[user].reshape(len(user), len(CATEGORIES), -1).sum(2)
        counts = (self.affinity[user], sub), (kin, PARENT[sub])
        past = [np.log(0.25 + np.take_along_axis(x, at, 1)) for x, at in counts]
        rate, price = np.log(self.clicks / self.views)[pool], world.relative_price[pool]
        numbers = [rate, *past, np.minimum(excitement, 2), satiation, np.log1p(seen), price]
        by_tier = self.tier[user][:, None] * price[..., None]
        by_age = self.age[user][:, None, :, None] * np.eye(8)[PARENT[sub]][:, :, None]
        return np.concatenate([np.stack(numbers, -1), by_tier, by_age.reshape(*pool.shape, -1)], -1)


def fitted(numbers, names, train, label):
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((numeric, list(numbers)), (texts, list(names)))
    return make_pipeline(columns, LogisticRegression(C=0.03, max_iter=300)).fit(train, train[label])


def realism(seed: int) -> dict[str, float]:
    """The figures of the realism table for one shop of full size."""
    config = ShopConfig(seed=seed)
    world, shop = make_world(config), simulate(config)
    log, gains, frame = world.log, Rivals(world).gains, shop_frame(shop).merge(shop.truth, on="impression_id")
    users = (
        frame.groupby("user_id")["click"].agg(["size", "sum"]).reindex(range(config.n_users), fill_value=0)
    )
    bought = frame[frame["purchase"] == 1]
    delay = (bought["purchase_time"] - bought["timestamp"]).dt.total_seconds() / 3600
    parts, history = shop_splits(frame), {}
    plain = [name for name in SHOP_CATEGORICAL if name != "last_sub_category"]
    for kind, columns in {"counts": (SHOP_COUNTS, plain), "all": (SHOP_NUMERIC, SHOP_CATEGORICAL)}.items():
        said = fitted(*columns, parts["train"], "click").predict_proba(parts["test"])[:, 1]
        history[kind] = expected_auc(parts["test"]["p_click"], said)
    known = {name: part.dropna(subset=["next_category"]) for name, part in parts.items()}
    train, test = (known[name].drop_duplicates("session_id") for name in ("train", "test"))
    lately = [name for name in SHOP_NUMERIC if name.startswith("past_")] + ["days_since_click"]
    who = ["region", "loyalty_tier", "age_group", "last_sub_category"]
    model = fitted(lately, who, train, "next_category")
    found = {
        "click rate": frame["click"].mean(),
        "conversion": log["purchase"].sum() / log["click"].sum(),
        "median impressions": users["size"].median(),
        "median clicks": users["sum"].median(),
        "repeat exposure": frame.duplicated(["user_id", "item_id"]).mean(),
        "new items": (world.first_day > 0).mean(),
        "delay, median hours": delay.median(),
        "delay within a week": (delay <= 168).mean(),
        "still pending": (log["purchase"].sum() - len(bought)) / len(bought),
        "history, AUC of click": history["all"] - history["counts"],
        "next_category, majority": test["next_category"].value_counts(normalize=True).max(),
        "next_category, logistic regression": model.score(test, test["next_category"]),
        "next_category, users": test["user_id"].nunique(),
    }
    found |= {f"{name} / old": gains[name] / gains["old"] for name in ("truth", "model", "random")}
    click, given, purchase = (
        shop.truth[f"p_{name}"] for name in ("click", "purchase_given_click", "purchase")
    )
    found |= {"Bayes click": expected_auc(click, click), "Bayes purchase": expected_auc(purchase, purchase)}
    return found | {"Bayes purchase_given_click": expected_auc(given, given, click)} | content_shares(shop)


def content_shares(shop) -> dict[str, float]:
    """R² of each hidden quantity on the words and pictures that show it."""
    hidden = shop.hidden.drop(columns="item_id")
    drawn = generator(shop.config, PICTURES).standard_normal(hidden.shape)
    picture = 1 / (1 + np.exp(-1.7 * (hidden.to_numpy() + NOISE * drawn) / np.hypot(1, NOISE)))
    text = (shop.items["title"] + " " + shop.items["description"]).str.lower()
    shares = {}
    for i, (name, levels) in enumerate(WORDS.items()):
        known = {word: level for level, words in enumerate(levels) for word in words if word}
        level = [max((n for word, n in known.items() if word in t), default=2) for t in text]
        both = np.column_stack([pd.get_dummies(pd.Series(level)).astype(float), picture[:, i]])
        shares[f"content, {name}"] = LinearRegression().fit(both, hidden[name]).score(both, hidden[name])
    return shares


REALISM = {
    "click rate": (0.06, 0.09),
    "conversion": (0.06, 0.10),
    "median impressions": (45, 200),
    "median clicks": (4, 20),
    "repeat exposure": (0.30, 0.60),
    "new items": (0.10, 0.15),
    "delay, median hours": (1, 24),
    "delay within a week": (0.90, 1),
    "still pending": (0.001, 0.1),
    "Bayes click": (0.83, 0.88),
    "Bayes purchase": (0.90, 0.95),
    "Bayes purchase_given_click": (0.74, 0.80),
    "truth / old": (1.5, 3.0),
    "model / old": (1.2, 1.6),
    "random / old": (0.50, 0.65),
    "history, AUC of click": (0.02, 0.1),
    "next_category, majority": (0.125, 0.20),
    "next_category, logistic regression": (0.45, 0.75),
    "next_category, users": (300, 2000),
    **{f"content, {name}": (0.40, 0.60) for name in WORDS},
}


@pytest.mark.slow
def test_realism():
    table = pd.DataFrame([realism(seed) for seed in range(10)])
    bounds = pd.DataFrame(REALISM, index=["low", "high"])
    assert list(table) and set(table) == set(bounds)
    off = {name: table[name].tolist() for name in table if not table[name].between(*bounds[name]).all()}
    assert off == {}
