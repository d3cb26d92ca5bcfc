"""From a table to batches on the device: tasks, features, the shop, real logs."""

from mtl_helpers.data.correlated import CORRELATED_TASKS, CorrelatedTasks, correlated_tasks, sinusoidal
from mtl_helpers.data.features import FeatureEncoder, Splits, prepare, split_by_time, split_by_user
from mtl_helpers.data.inspect import check_leaks, guess_features
from mtl_helpers.data.public import (
    CENSUS_CATEGORICAL,
    CENSUS_NUMERIC,
    CENSUS_TASKS,
    KUAIRAND_CATEGORICAL,
    KUAIRAND_NUMERIC,
    KUAIRAND_OUTCOMES,
    KUAIRAND_PLAY_TASK,
    KUAIRAND_TASKS,
    KUAIRAND_WIDE_CATEGORICAL,
    KUAIRAND_WIDE_NUMERIC,
    census_available,
    kuairand_available,
    load_census,
    load_kuairand,
    split_by_date,
)
from mtl_helpers.data.shop import SHOP_FOLDER, Shop, load_shop, simulate, write_shop
from mtl_helpers.data.shop_log import (
    PRIOR_CTR,
    PRIOR_VIEWS,
    SHOP_CATEGORICAL,
    SHOP_NUMERIC,
    SHOP_TASKS,
    bayes_auc,
    clean_impressions,
    clean_items,
    clean_users,
    clip_outliers,
    convert_units,
    drop_duplicate_rows,
    mask_future_labels,
    shop_frame,
    shop_splits,
    tidy_text,
)
from mtl_helpers.data.shop_world import (
    AGE_GROUPS,
    CATEGORIES,
    CHANNELS,
    REGIONS,
    SESSION_LENGTH,
    TIERS,
    ShopConfig,
    World,
    make_world,
)
from mtl_helpers.data.tables import Batch, MultiTaskDataset, Schema, Task, hide_labels

# fmt: off
__all__ = [
    "AGE_GROUPS", "Batch", "CATEGORIES", "CENSUS_CATEGORICAL", "CENSUS_NUMERIC", "CENSUS_TASKS", "CHANNELS",
    "CORRELATED_TASKS", "CorrelatedTasks", "FeatureEncoder", "KUAIRAND_CATEGORICAL", "KUAIRAND_NUMERIC",
    "KUAIRAND_OUTCOMES", "KUAIRAND_PLAY_TASK", "KUAIRAND_TASKS", "KUAIRAND_WIDE_CATEGORICAL",
    "KUAIRAND_WIDE_NUMERIC", "MultiTaskDataset", "PRIOR_CTR", "PRIOR_VIEWS", "REGIONS", "SESSION_LENGTH",
    "SHOP_CATEGORICAL", "SHOP_FOLDER", "SHOP_NUMERIC", "SHOP_TASKS", "Schema", "Shop", "ShopConfig", "Splits",
    "TIERS", "Task", "World", "bayes_auc", "census_available", "check_leaks", "clean_impressions",
    "clean_items", "clean_users", "clip_outliers", "convert_units", "correlated_tasks", "drop_duplicate_rows",
    "guess_features", "hide_labels", "kuairand_available", "load_census", "load_kuairand", "load_shop",
    "make_world", "mask_future_labels", "prepare", "shop_frame", "shop_splits", "simulate", "sinusoidal",
    "split_by_date", "split_by_time", "split_by_user", "tidy_text", "write_shop",
]
