"""`python -P -m evergreen STEP [PROBLEM]`: run one step; see evergreen.tasks.__main__."""

import atexit
import gc
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # without -P it is the working directory: modules there must not replace libraries
    atexit.register(gc.freeze)  # the libraries' objects need no last collection, which takes a third of a second
    from evergreen.tasks.__main__ import main

    sys.exit(main())
