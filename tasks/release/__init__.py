"""Registry, lineage, promotion gate, deployments, rollouts."""
