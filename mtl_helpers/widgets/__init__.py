"""The demos of the course: sliders that drive its figures."""

from mtl_helpers.widgets.dashboard import Shopfront, shop_dashboard
from mtl_helpers.widgets.explorer import (
    Explorer,
    Stage,
    choice_slider,
    dropdown,
    encode_png,
    slider,
    toggle,
    undefined,
)
from mtl_helpers.widgets.figures import (
    figure,
    figure_png,
    interval_dots,
    learning_curves,
    paired_dots,
    task_style,
    use_course_style,
)
from mtl_helpers.widgets.formulas import (
    combine_two,
    logit_explorer,
    quadratic,
    two_gradients,
    two_gradients_explorer,
    two_losses_explorer,
    weighted_optimum,
)
from mtl_helpers.widgets.landscape import (
    FRONT,
    STARTS,
    WALKERS,
    descend,
    plane_gradients,
    plane_losses,
    two_task_weights,
)
from mtl_helpers.widgets.live import LiveTraining, gradient_shares, live_training
from mtl_helpers.widgets.scarcity import scarcity_explorer
from mtl_helpers.widgets.threshold import threshold_explorer
from mtl_helpers.widgets.weights import TrainedWeights, weight_explorer

__all__ = [
    "Explorer",
    "FRONT",
    "LiveTraining",
    "STARTS",
    "Shopfront",
    "Stage",
    "TrainedWeights",
    "WALKERS",
    "choice_slider",
    "combine_two",
    "descend",
    "dropdown",
    "encode_png",
    "figure",
    "figure_png",
    "gradient_shares",
    "interval_dots",
    "learning_curves",
    "live_training",
    "logit_explorer",
    "paired_dots",
    "plane_gradients",
    "plane_losses",
    "quadratic",
    "scarcity_explorer",
    "shop_dashboard",
    "slider",
    "task_style",
    "threshold_explorer",
    "toggle",
    "two_gradients",
    "two_gradients_explorer",
    "two_losses_explorer",
    "two_task_weights",
    "undefined",
    "use_course_style",
    "weight_explorer",
    "weighted_optimum",
]
