"""Python imports this at its start: there is nothing but what this project itself requires.

Diffusers and Accelerate import SciPy and boto3 where they find them, which takes each program a second.
"""

import sys

for name in ("boto3", "scipy"):
    sys.modules[name] = None  # type: ignore[assignment]  # not to be found
