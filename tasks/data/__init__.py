"""Reading tables from sources, and validating their rows."""
