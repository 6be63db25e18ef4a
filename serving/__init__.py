"""The HTTP service: predictions, recommendations, events, labels. No Prefect, and no training code on the hot path."""
