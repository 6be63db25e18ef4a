"""Rollouts: losses, sequential tests, controller."""
