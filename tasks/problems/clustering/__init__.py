"""Clustering: which kinds of rows there are. A prediction is a group, and no label ever judges it."""
