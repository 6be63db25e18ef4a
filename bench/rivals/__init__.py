"""What other systems do with the same rows: one script each, run by its own environment, which knows nothing of Evergreen."""
