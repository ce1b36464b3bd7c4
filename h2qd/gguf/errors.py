"""The one error of this package."""


class GgufError(Exception):
    """The file is not a model that native code may be given. The message begins with "cannot" and is safe to show."""
