"""Retraining policies and their backtest."""
