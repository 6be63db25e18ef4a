"""Further commands of `evergreen`, a file for each room they open. Importing one adds its commands."""

from flows.commands import (
    keys,  # noqa: F401
    replay,  # noqa: F401
    rollout,  # noqa: F401
)
