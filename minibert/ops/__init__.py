"""One interface to the machine, several implementations of it."""
