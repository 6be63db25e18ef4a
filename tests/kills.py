"""A kill in the middle, for tests of what it leaves behind."""


class KilledError(BaseException):
    """Stands for kill -9: nothing of ours catches it."""
