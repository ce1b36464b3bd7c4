"""Servers that run models, as peers in tests: they speak a public API over real sockets, and misbehave on demand."""
