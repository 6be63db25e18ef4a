"""Further commands of `evergreen`, a file for each room they open. Importing one adds its commands."""

from evergreen.flows.cli import (
    backtest,  # noqa: F401
    export,  # noqa: F401
    keys,  # noqa: F401
    labels,  # noqa: F401
    monitor,  # noqa: F401
    rollout,  # noqa: F401
    serve,  # noqa: F401
)
