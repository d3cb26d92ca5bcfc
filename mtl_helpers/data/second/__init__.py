"""The shop, second edition: a log whose lessons a real log would confirm. It replaces the first one as the notebooks
move.

:mod:`.world` holds what users want and what products are, :mod:`.run` lets the shop run, :mod:`.content` writes and
draws its products, :mod:`.shop` makes the files, :mod:`.log` prepares them for learning.
"""

from mtl_helpers.data.second.log import (
    SHOP_CATEGORICAL,
    SHOP_COUNTS,
    SHOP_HISTORY,
    SHOP_IDS,
    SHOP_NUMERIC,
    SHOP_TASKS,
    bayes_auc,
    clean_impressions,
    clean_items,
    clean_users,
    history_sequences,
    mask_future_labels,
    shop_frame,
    shop_splits,
)
from mtl_helpers.data.second.run import make_world
from mtl_helpers.data.second.shop import Shop, load_shop, pictures, simulate, write_shop
from mtl_helpers.data.second.world import CATEGORIES, SUB_CATEGORIES, SURFACES, ShopConfig, World

__all__ = [
    "CATEGORIES",
    "SHOP_CATEGORICAL",
    "SHOP_COUNTS",
    "SHOP_HISTORY",
    "SHOP_IDS",
    "SHOP_NUMERIC",
    "SHOP_TASKS",
    "SUB_CATEGORIES",
    "SURFACES",
    "Shop",
    "ShopConfig",
    "World",
    "bayes_auc",
    "clean_impressions",
    "clean_items",
    "clean_users",
    "history_sequences",
    "load_shop",
    "make_world",
    "mask_future_labels",
    "pictures",
    "shop_frame",
    "shop_splits",
    "simulate",
    "write_shop",
]
