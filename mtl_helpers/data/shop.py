"""A simulated shop whose true click and purchase probabilities are known.

Taught in notebook 00 (the shop in pictures); every later notebook uses it. :func:`simulate` draws the log of a hidden
:class:`~mtl_helpers.data.shop_world.World` as a shop would store it, with dirt and with the truth laid apart;
:mod:`mtl_helpers.data.shop_log` prepares that log for learning.

``python -m mtl_helpers.data.shop [folder]`` writes the shipped files anew, to the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.data.shop_world import (
    CHANNELS,
    DIRT,
    LOG,
    SESSION_LENGTH,
    ShopConfig,
    World,
    draw_sessions,
    generator,
    make_world,
    moments,
    names_of,
)
from mtl_helpers.files import write_atomically

__all__ = ["SHOP_FOLDER", "Shop", "load_shop", "simulate", "write_shop"]

START = np.datetime64("2025-03-03T00:00:00", "s")  # a Monday
SHOP_FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "shop"
"""Where the shipped files lie in a checkout."""
# The log is drawn in chunks of this many sessions, each from a child seed of its own.
_CHUNK_SESSIONS = 4096
_DUPLICATE_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class Shop:
    """A shop's raw tables, as :func:`simulate` or :func:`load_shop` return them.

    Attributes
    ----------
    users, items, impressions : the raw tables, dirt included (columns in ``datasets/shop/README.md``).
    truth : impression_id, p_click, p_purchase_given_click, p_purchase. For judging, never for training.
    config : the knobs; None when files were loaded that carry none.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    impressions: pd.DataFrame
    truth: pd.DataFrame
    config: ShopConfig | None

    def __repr__(self) -> str:
        return (
            f"Shop({len(self.users):,} users, {len(self.items):,} items, {len(self.impressions):,} raw rows, "
            f"config={self.config})"
        )


def simulate(config: ShopConfig | None = None) -> Shop:
    """Draw a whole shop: its raw tables, with dirt, and the truth apart."""
    config = config or ShopConfig()
    world = make_world(config)
    n_sessions = config.n_impressions // SESSION_LENGTH
    chunks = [_draw_chunk(world, chunk, n_sessions) for chunk in range(-(-n_sessions // _CHUNK_SESSIONS))]
    log = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return Shop(*_dirty_tables(world), *_log_tables(log), config)


def _draw_chunk(world: World, chunk: int, n_sessions: int) -> dict[str, np.ndarray]:
    """Draw the sessions of one chunk, in order of time."""
    config = world.config
    rng = generator(config, LOG, chunk)
    session = np.arange(chunk * _CHUNK_SESSIONS, min((chunk + 1) * _CHUNK_SESSIONS, n_sessions))
    # Session s falls into the s-th of n equal slices of the traffic, so the log is sorted without a sort.
    moment = moments(config, (session + rng.random(len(session))) / n_sessions)
    user, item, channel = draw_sessions(world, rng, len(session))
    position = np.tile(np.arange(1, SESSION_LENGTH + 1), len(session))
    moment, session = np.repeat(moment, SESSION_LENGTH), np.repeat(session, SESSION_LENGTH)
    p_click, p_purchase = world.probabilities(user, item, position, moment // 3600 % 24, channel)
    n = len(session)
    click = rng.random(n) < p_click
    purchase = click & (rng.random(n) < p_purchase)
    dwell = np.exp(3.2 + 0.35 * world.quality[item] + 0.9 * purchase + 0.5 * rng.standard_normal(n))
    return {
        "impression_id": session * SESSION_LENGTH + position - 1,
        "session_id": session,
        "moment": moment,
        "user_id": user,
        "item_id": item,
        "position": position,
        "channel": channel,
        "click": click.astype(np.int64),
        "purchase": purchase.astype(np.int64),
        "dwell_seconds": np.where(click, np.clip(np.rint(dwell), 1, 1800), np.nan),
        "p_click": p_click,
        "p_purchase_given_click": p_purchase,
        "copies": 1 + (rng.random(n) < _DUPLICATE_SHARE),
    }


def _log_tables(columns: dict[str, np.ndarray]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn columns of distinct impressions into the raw log and its truth."""
    truth = pd.DataFrame(
        {
            "impression_id": columns["impression_id"],
            "p_click": np.round(columns["p_click"], 6),
            "p_purchase_given_click": np.round(columns["p_purchase_given_click"], 6),
            "p_purchase": np.round(columns["p_click"] * columns["p_purchase_given_click"], 6),
        }
    )
    rows = np.repeat(np.arange(len(columns["copies"])), columns["copies"])
    raw = {name: values[rows] for name, values in columns.items()}
    stamps = np.datetime_as_string(START + raw.pop("moment").astype("timedelta64[s]"))
    raw["channel"] = names_of(CHANNELS, raw["channel"])
    raw["timestamp"] = pd.Series(stamps.astype(object))
    return pd.DataFrame(raw)[list(_COLUMNS["impressions"])], truth


def _dirty_tables(world: World) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The shop's users and items with the faults real tables have."""
    rng = generator(world.config, DIRT)
    users, items = world.users.copy(), world.items.copy()
    n = len(users)
    age = users["age"].to_numpy(float)
    age[rng.random(n) < 0.08] = np.nan
    odd = rng.random(n) < 0.005
    odd[rng.integers(0, n)] = True
    age[odd] = np.where(rng.random(n) < 0.7, 999.0, 0.0)[odd]
    users["age"] = age

    n = len(items)
    spelling = rng.integers(0, 12, n)
    spell = {0: str.upper, 1: str.title, 2: lambda name: f" {name}", 3: lambda name: f"{name.title()}  "}
    items["category"] = pd.Series(
        [spell.get(k, str)(c) for k, c in zip(spelling, items["category"], strict=True)]
    )
    price = items["price"].to_numpy(float).copy()
    cents = rng.random(n) < 0.15
    slip = rng.integers(0, n)
    price[slip] = np.round(price[slip] * 1000, 2)  # somebody lost a decimal point
    price = np.where(cents, np.rint(price * 100), price)
    rating = items["rating"].to_numpy(float).copy()
    rating[rng.random(n) < 0.03] = np.nan
    items["price"], items["rating"] = price, rating
    items["price_unit"] = names_of(("EUR", "cent"), cents.astype(np.int64))
    return users[list(_COLUMNS["users"])], items[list(_COLUMNS["items"])]


# ------------------------------------------------------------------------------------------------- files

# Columns of each file and what they hold: whole numbers, text (None), or numbers with so many decimals, maybe missing.
_WHOLE = "whole"
# fmt: off
_COLUMNS = {
    "users": {"user_id": _WHOLE, "age": 0, "region": None, "loyalty_tier": None, "signup_days": _WHOLE},
    "items": {
        "item_id": _WHOLE, "category": None, "brand": None, "price": 2, "price_unit": None, "rating": 1,
        "launched_days": _WHOLE,
    },
    "impressions": {
        "impression_id": _WHOLE, "session_id": _WHOLE, "timestamp": None, "user_id": _WHOLE, "item_id": _WHOLE,
        "position": _WHOLE, "channel": None, "click": _WHOLE, "purchase": _WHOLE, "dwell_seconds": 0,
    },
    "truth": {"impression_id": _WHOLE, "p_click": 6, "p_purchase_given_click": 6, "p_purchase": 6},
}
# fmt: on


def write_shop(config: ShopConfig | None = None, folder: str | Path = SHOP_FOLDER) -> list[Path]:
    """Simulate a shop and write its files; the same config gives the same bytes.

    Writes ``users``, ``items``, ``impressions`` and ``truth`` as ``.csv.gz`` and the knobs as ``config.json``.
    Returns the paths.
    """
    config = config or ShopConfig()
    shop = simulate(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    knobs = json.dumps(asdict(config), indent=2, default=int)
    contents = {"config.json": (knobs + "\n").encode()}
    for name in _COLUMNS:
        contents[f"{name}.csv.gz"] = _gzip(_csv(getattr(shop, name), _COLUMNS[name]))
    for name, content in contents.items():
        with write_atomically(folder / name) as file:
            file.write(content)
    return [folder / name for name in contents]


def _csv(frame: pd.DataFrame, columns: dict[str, str | int | None]) -> bytes:
    text = frame.copy()
    for name, decimals in columns.items():
        if isinstance(decimals, int):
            text[name] = ["" if value != value else f"{value:.{decimals}f}" for value in frame[name].tolist()]
    return text.to_csv(index=False, lineterminator="\n").encode()


def _gzip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    # No name and no time in the header: the bytes depend on the content (and the zlib) alone.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def load_shop(folder: str | Path | None = None) -> Shop:
    """Read a shop's files.

    Parameters
    ----------
    folder : where they lie; :data:`SHOP_FOLDER` by default. When that default holds no shop (the package was
        installed without the data), the same shop is simulated in memory.

    Raises FileNotFoundError when a file is missing, ValueError when one lacks a column or holds text for a number.
    """
    if folder is None and not (SHOP_FOLDER / "users.csv.gz").is_file():
        return simulate()
    folder = Path(folder or SHOP_FOLDER)
    tables = {}
    for name, columns in _COLUMNS.items():
        types = {
            column: np.int64 if kind == _WHOLE else float
            for column, kind in columns.items()
            if kind is not None
        }
        path = folder / f"{name}.csv.gz"
        table = pd.read_csv(path, dtype=types, usecols=list(columns), keep_default_na=False, na_values=[""])
        tables[name] = table[list(columns)]
    knobs = folder / "config.json"
    return Shop(**tables, config=ShopConfig(**json.loads(knobs.read_text())) if knobs.is_file() else None)


if __name__ == "__main__":
    for written in write_shop(ShopConfig(), *sys.argv[1:2]):
        print(f"{written}  {written.stat().st_size / 1e3:,.1f} kB")
