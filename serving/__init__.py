"""Answers over HTTP. The room is empty: deployed champions are files and registry aliases so far."""
