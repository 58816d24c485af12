"""`python parsed_only.py SCRIPT ARGUMENTS…`: the script up to where it has understood its arguments."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

parse_args = argparse.ArgumentParser.parse_args


def parse_and_leave(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> NoReturn:
    parse_args(parser, *arguments, **options)
    sys.exit(0)


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = parse_and_leave  # type: ignore[assignment, method-assign]
    _, *sys.argv = sys.argv
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit("it has parsed nothing")
