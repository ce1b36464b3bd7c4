"""Failures that end the daemon itself. What clients hear is a `core.records.Fault`."""


class StartError(Exception):
    """The daemon cannot start: the text says what stands in the way and what to do. Exit status 1."""
