"""From a table to batches on the device: tasks, features, the shop, real logs."""

from mtl_helpers.data.content import *
from mtl_helpers.data.correlated import *
from mtl_helpers.data.features import *
from mtl_helpers.data.inspect import *
from mtl_helpers.data.public import *
from mtl_helpers.data.shop import *
from mtl_helpers.data.shop_log import *
from mtl_helpers.data.shop_world import *
from mtl_helpers.data.tables import *
