"""`evergreen init`: from a file to a section of params.yaml."""
