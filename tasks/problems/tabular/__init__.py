"""Shared parts of classification, regression and clustering: feature rows and their preprocessing inside each fold."""
