"""Every command's line: its arguments and options. What it does is a module of its own."""
