"""Explanations of models and predictions."""
