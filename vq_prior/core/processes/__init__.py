"""The processes of a command: start, sums over them, signals, a watchdog."""
