"""Every key of the programs, typed and checked. Imports no torch."""
