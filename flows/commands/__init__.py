"""Further commands of `evergreen`, a file for each room they open. Importing one adds its commands."""
