"""What gitmirror does, with no command line, no terminal and no printing."""
