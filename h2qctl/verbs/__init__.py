"""One file a verb: its summary, its examples, its arguments, and `run(client, args, out) -> exit status`."""
