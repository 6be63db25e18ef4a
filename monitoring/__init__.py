"""Whether all is well: what people read about their models."""
