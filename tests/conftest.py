"""One thread for each numeric library, as in a step: two halves of the suite run side by side on two cores."""

import os

from tasks.__main__ import THREADS

for name in THREADS:
    os.environ.setdefault(name, "1")
