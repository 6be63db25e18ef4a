"""The console: a project in the browser. Pages read its records; actions call the functions that the commands call."""
