"""`python -P -m evergreen STEP [PROBLEM]`: run one step; see evergreen.tasks.__main__."""

import sys

from evergreen.tasks.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
