"""What classification, regression and clustering share: rows of features, and what happens to them inside each fold."""
