"""How good predictions are: realised, once labels are known; estimated, before."""
