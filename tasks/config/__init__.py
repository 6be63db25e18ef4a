"""params.yaml as frozen models."""
