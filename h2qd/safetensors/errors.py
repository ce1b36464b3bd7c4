"""The one error of this package."""


class SafetensorsError(Exception):
    """A folder is not a model that may be run. The message begins with "cannot" and is safe to show."""
