"""One file a command: a function that Python calls as well, its options, and what it prints."""
