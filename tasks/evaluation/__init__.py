"""Scores of models on test windows, with confidence intervals."""
