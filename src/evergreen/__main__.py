"""`python -P -m evergreen STEP [PROBLEM]`: run one step; see evergreen.tasks.__main__."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # without -P it is the working directory: modules there must not replace libraries
    from evergreen.tasks.__main__ import main
    from evergreen.tasks.core import garbage

    garbage.collect_seldom()
    sys.exit(main())
