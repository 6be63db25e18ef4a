"""Answers: recommendations in process, with live histories and the log that keeps them. No training here, no prefect."""
