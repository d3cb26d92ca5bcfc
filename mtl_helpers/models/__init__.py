"""The models of the course: layers, who shares what, fusion, notebook 05's case, saving."""

from mtl_helpers.models.case import (
    CASE_CATEGORICAL,
    CASE_NUMERIC,
    ITEM_COLUMNS,
    PAIR_COLUMNS,
    USER_COLUMNS,
    CaseModel,
    candidates,
    case_data,
    case_frames,
    case_model,
    case_tasks,
    item_table,
    score_candidates,
    true_values,
)
from mtl_helpers.models.funnel import AITM, ESMM, complete_chain
from mtl_helpers.models.fusion import Fusion, LearnedFusion
from mtl_helpers.models.layers import FeatureLayer, Tower, count_parameters, mlp
from mtl_helpers.models.saving import load_model, model_classes, save_model, score_rows
from mtl_helpers.models.sharing import (
    PLE,
    CrossStitch,
    MMoE,
    SharedBottom,
    SingleTask,
    match_parameters,
)

__all__ = [
    "AITM",
    "CASE_CATEGORICAL",
    "CASE_NUMERIC",
    "CaseModel",
    "CrossStitch",
    "ESMM",
    "FeatureLayer",
    "Fusion",
    "ITEM_COLUMNS",
    "LearnedFusion",
    "MMoE",
    "PAIR_COLUMNS",
    "PLE",
    "SharedBottom",
    "SingleTask",
    "Tower",
    "USER_COLUMNS",
    "candidates",
    "case_data",
    "case_frames",
    "case_model",
    "case_tasks",
    "complete_chain",
    "count_parameters",
    "item_table",
    "load_model",
    "match_parameters",
    "mlp",
    "model_classes",
    "save_model",
    "score_candidates",
    "score_rows",
    "true_values",
]
