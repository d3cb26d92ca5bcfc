"""The models of the course: layers, who shares what, fusion, notebook 05's case, saving."""

from mtl_helpers.models.case import *
from mtl_helpers.models.content import *
from mtl_helpers.models.fusion import *
from mtl_helpers.models.layers import *
from mtl_helpers.models.newer import *
from mtl_helpers.models.rare import *
from mtl_helpers.models.saving import *
from mtl_helpers.models.sharing import *
