"""Prefect's server, deployments and runs."""
