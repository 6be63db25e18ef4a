"""Drift: reference data, null distribution, detection, reports."""
