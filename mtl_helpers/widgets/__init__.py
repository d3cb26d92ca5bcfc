"""The demos of the course: sliders that drive its figures."""

from mtl_helpers.widgets.dashboard import *
from mtl_helpers.widgets.drawings import *
from mtl_helpers.widgets.explorer import *
from mtl_helpers.widgets.figures import *
from mtl_helpers.widgets.formulas import *
from mtl_helpers.widgets.guess import *
from mtl_helpers.widgets.landscape import *
from mtl_helpers.widgets.live import *
from mtl_helpers.widgets.scarcity import *
from mtl_helpers.widgets.threshold import *
from mtl_helpers.widgets.weights import *
