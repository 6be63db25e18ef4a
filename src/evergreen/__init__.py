"""Evergreen keeps machine-learning models fresh. The four folders at the top of the repository are linked here."""
