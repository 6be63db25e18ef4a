"""Regression: how much. A prediction is a number."""
