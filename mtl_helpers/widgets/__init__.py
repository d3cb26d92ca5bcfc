"""The demos of the course: sliders that drive its figures."""

from importlib import import_module
from typing import Any

from mtl_helpers.widgets.drawings import *
from mtl_helpers.widgets.explorer import *
from mtl_helpers.widgets.figures import *
from mtl_helpers.widgets.folded import *
from mtl_helpers.widgets.guess import *
from mtl_helpers.widgets.scarcity import *
from mtl_helpers.widgets.threshold import *
from mtl_helpers.widgets.weights import *


def __getattr__(name: str) -> Any:
    """What needs torch comes when it is asked for: notebook 00 shows its first slider without waiting for torch."""
    for module in ("dashboard", "formulas", "landscape", "live"):
        found = import_module(f"{__name__}.{module}")
        if name in found.__all__:
            return getattr(found, name)
    raise AttributeError(f"mtl_helpers.widgets has no {name!r}")
