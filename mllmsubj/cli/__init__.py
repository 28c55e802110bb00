"""One module per command: `define(flags)` declares its flags, `run(flags, argv)` runs it."""
