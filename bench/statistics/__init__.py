"""Simulations of the statistical claims: each one's true rate, beside the rate that is stated."""
