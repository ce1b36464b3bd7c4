"""h2qd: the supervisor daemon that decides which language model holds memory on a device."""

__version__ = "0.1.0"
