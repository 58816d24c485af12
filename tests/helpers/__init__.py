"""What several test files share. The fixtures are in `conftest.py`."""
