"""Recommendation: which items each user buys next. A prediction is a ranked list."""
