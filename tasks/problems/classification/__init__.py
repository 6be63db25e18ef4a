"""Classification: which of two or more classes. A prediction is a probability per class."""
