"""The programs. Only they assemble the parts: validate, build, run."""
