"""`python -m weightmorph.cli` is `weightmorph`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
