"""The `evergreen` command: a file per verb."""
