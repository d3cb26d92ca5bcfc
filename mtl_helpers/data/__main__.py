"""``python -m mtl_helpers.data [folder]`` writes the shipped shop's files anew, to the same bytes."""

import sys

from mtl_helpers.data.shop import SHOP_FOLDER, write_shop

if __name__ == "__main__":  # an import writes nothing
    for path in write_shop(folder=sys.argv[1] if sys.argv[1:] else SHOP_FOLDER):
        print(f"{path}  {path.stat().st_size / 1e3:,.1f} kB")
