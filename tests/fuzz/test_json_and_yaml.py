"""Any bytes are values, or one line."""

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from ddpm_train.config.foreign import BadFile, read_json, read_yaml

VALUES = {"format": 1, "files": {"unet": {"bytes": 7, "sha256": "ab"}}, "names": ["á", None, 1e-3, True]}


@pytest.mark.fuzz(small=100, large=1000)
def test_damaged_bytes(random: Random, tmp_path: Path) -> None:
    path = tmp_path / "values"
    for text, read in (
        (json.dumps(VALUES), lambda: read_json(path, dict[str, dict[str, int]])),
        (yaml.safe_dump(VALUES), lambda: read_yaml(path)),
    ):
        data = bytearray(text.encode())
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            assert isinstance(read(), dict)
        except BadFile as error:
            assert str(error).isprintable()
