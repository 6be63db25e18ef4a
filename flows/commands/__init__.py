"""Further commands of `evergreen`, a file for each room they open. Importing one adds its commands."""

from flows.commands import (
    cloud,  # noqa: F401
    keys,  # noqa: F401
    ledger,  # noqa: F401
    loop,  # noqa: F401
    replay,  # noqa: F401
    rollout,  # noqa: F401
    serving,  # noqa: F401
)
