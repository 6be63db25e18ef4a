"""The search for a model and its hyper-parameters."""
