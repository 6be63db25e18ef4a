"""The ledger: predictions, labels, decisions."""
