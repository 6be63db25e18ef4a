"""The code that MLflow loads with a logged model: a copy of this room and of what it imports is stored with each version.

It runs without a project and without Evergreen installed, with the packages that the model's requirements.txt lists.
"""
