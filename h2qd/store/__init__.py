"""Model files on disk: what is registered, where it lies, and what was remembered. Blocking; call it off the loop."""
