"""The run as a library."""
