"""The shop's files: its raw log, dirt included, its products with pictures, and the truth laid apart.

``python -m mtl_helpers.data`` writes the shipped files anew, to the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.data import shop_world as sim
from mtl_helpers.data.shop_content import WORDS, draw_sheet, encode_rgb
from mtl_helpers.data.shop_world import ShopConfig, World, generator, make_world

__all__ = ["SHOP_FOLDER", "Shop", "load_shop", "pictures", "simulate", "write_shop"]

SHOP_FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "shop"
"""Where the shipped files lie in a checkout."""
_TABLES = ("users", "items", "impressions", "truth", "hidden")


@dataclass(frozen=True, eq=False, repr=False)
class Shop:
    """A shop's raw tables, dirt included (columns in ``datasets/shop/README.md``), and what only judges may read."""

    users: pd.DataFrame
    items: pd.DataFrame
    impressions: pd.DataFrame
    truth: pd.DataFrame  # impression_id, p_click, p_purchase_given_click, p_purchase
    hidden: pd.DataFrame  # item_id, and what its words and pictures hint at
    config: ShopConfig  # ``make_world(config)`` brings back the whole :class:`World`


def simulate(config: ShopConfig | None = None) -> Shop:
    """Draw a whole shop: its raw tables, with dirt, and the truth apart."""
    world = make_world(config)
    rng, users, items = generator(world.config, sim.DIRT), world.users, world.items
    # missing ages, and impossible ones
    age, odd = users["age"].to_numpy(float), rng.random(len(users)) < 0.005
    age[rng.random(len(users)) < 0.08] = np.nan
    odd[rng.integers(len(users))] = True
    users = users.assign(age=np.where(odd, rng.choice([999.0, 0.0], len(users), p=(0.7, 0.3)), age))
    # categories spelled in several ways, prices in cents, and one with a lost decimal point
    spell = {0: str.upper, 1: str.title, 2: lambda name: f" {name}", 3: lambda name: f"{name.title()}  "}
    how, cents = rng.integers(0, 12, len(items)), rng.random(len(items)) < 0.15
    category = [spell.get(k, str)(name) for k, name in zip(how, items["category"], strict=True)]
    price = items["price"].to_numpy(float).copy()
    price[rng.integers(len(items))] *= 1000
    items = items.assign(category=category, price=np.where(cents, np.rint(price * 100), price.round(2)))
    items.insert(items.columns.get_loc("price") + 1, "price_unit", np.where(cents, "cent", "EUR"))
    hidden = pd.DataFrame(world.hidden.round(3), columns=[*WORDS]).rename_axis("item_id").reset_index()
    return Shop(users, items, *_raw_log(world, rng), hidden, world.config)


def _raw_log(world: World, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Impressions as a shop stores them, a hundredth of the rows twice; and the truth of each, once."""
    log, n = world.log, len(world.log["item"])
    dear, quality = world.relative_price[log["item"]], world.quality[log["item"]]
    days = 0.28 * np.exp(2.0 * rng.standard_normal(n) + 0.5 * dear)  # from a click to the purchase
    paid = log["moment"] + np.rint(days * sim.DAY).astype(np.int64)
    bought = log["purchase"] & (paid < world.config.days * sim.DAY)  # the others are still pending
    dwell = np.exp(3.2 + 0.35 * quality + 0.9 * log["purchase"] + 0.5 * rng.standard_normal(n))
    stamps = (sim.START + seconds.astype("timedelta64[s]") for seconds in (log["moment"], paid))
    shown, paid = (np.datetime_as_string(times).astype(object) for times in stamps)
    impressions = {
        "impression_id": np.arange(n),
        "session_id": log["session"],
        "timestamp": shown,
        "user_id": log["user"],
        "item_id": log["item"],
        "position": log["position"],
        "surface": np.array(sim.SURFACES, object)[log["surface"]],
        "old_score": log["score"].round(3),
        "click": log["click"].astype(np.int64),
        "dwell_seconds": np.where(log["click"], np.clip(np.rint(dwell), 1, 1800), np.nan),
        "purchase": bought.astype(np.int64),
        "purchase_time": pd.Series(paid).where(bought),
    }
    p_click, given = log["p_click"], log["p_purchase_given_click"]
    truth = {"impression_id": np.arange(n), "p_click": p_click, "p_purchase_given_click": given}
    truth["p_purchase"] = p_click * given
    twice = np.repeat(np.arange(n), 1 + (rng.random(n) < 0.01))
    return pd.DataFrame(impressions).iloc[twice].reset_index(drop=True), pd.DataFrame(truth).round(6)


def write_shop(config: ShopConfig | None = None, folder: str | Path = SHOP_FOLDER) -> list[Path]:
    """Simulate a shop and write its files: the tables as ``.csv.gz``, ``pictures.png`` (see :func:`pictures`), the
    knobs as ``config.json``. The same config gives the same bytes. Returns the paths."""
    shop, folder = simulate(config), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(asdict(shop.config), indent=2) + "\n"
    contents = {"config.json": config.encode(), "pictures.png": encode_rgb(pictures(shop))}
    for name in _TABLES:
        with gzip.GzipFile("", "wb", 9, packed := io.BytesIO(), mtime=0) as file:  # no name, no time
            file.write(getattr(shop, name).to_csv(index=False, lineterminator="\n").encode())
        contents[f"{name}.csv.gz"] = packed.getvalue()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def pictures(shop: Shop) -> np.ndarray:
    """Pictures of the products, 32 pixels square, 40 a row in the order of ``item_id``: uint8 (rows·32, 1280, 3)."""
    sub = pd.Index(sim.SUBS).get_indexer(shop.items["sub_category"])
    return draw_sheet(sub, shop.hidden[[*WORDS]].to_numpy(), generator(shop.config, sim.PICTURES))


def load_shop(folder: str | Path | None = None) -> Shop:
    """Read a shop's files, by default the shipped ones; an installation without them simulates the same shop anew.
    Raises FileNotFoundError when ``folder`` lacks a file."""
    if folder is None and not (SHOP_FOLDER / "users.csv.gz").is_file():
        return simulate()
    folder = Path(folder or SHOP_FOLDER)
    tables = {name: pd.read_csv(folder / f"{name}.csv.gz") for name in _TABLES}
    config = ShopConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return Shop(**tables, config=config)
