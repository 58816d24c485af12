"""docs/hub.md, command by command, against the test hub."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from helpers.cli import ROOT, TINY
from helpers.hub.client import TOKEN, HubCli

PAGE = (ROOT / "docs/hub.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in PAGE.split("```bash\n")[1].split("```")[0].splitlines()]
# Fewer steps of a smaller model.
SMALL = {"train.max_steps=2800": "train.max_steps=8", "train.max_steps=4200": "train.max_steps=10"}


@pytest.mark.slow
def test_the_page_is_followed(hub_cli: HubCli) -> None:
    hub = hub_cli.hub
    hub.user = "owner"
    del hub_cli.environment["HF_TOKEN"]
    tiny = [text for text in TINY if not text.startswith("model.")]
    said = []
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        arguments = [SMALL.get(text, text) for text in arguments]
        if program == "hf":
            tool = str(Path(sys.executable).with_name("hf"))
            said.append(hub_cli.run([tool, *arguments, "--token", TOKEN]))
            continue
        if "resume=hf://owner/clothes" in arguments:
            shutil.rmtree(hub_cli.output("clothes"))
        if program == "ddpm-train":
            layout = [] if any("model.pretrained" in text for text in arguments) else set(TINY) - set(tiny)
            arguments = [*tiny, *layout, "lr_scheduler=constant", *arguments]
        said.append(hub_cli.run_main(program.removeprefix("ddpm-"), *arguments))
    login, first, _, second, resumed, tuned, pushed = said
    assert "pushed     " in first and "owner/clothes (step 6, commit" in first
    assert len(list(hub_cli.folder.glob("samples/**/*.png"))) >= 16
    assert "resumes at step 6" in second and "(step 8, commit" in second
    assert "resumes at step 8" in resumed and "done: step 10" in resumed
    assert "new run" in tuned and "owner/shoes (step 6, commit" in pushed
    assert (hub.head("owner/shoes").folder / "README.md").read_text().count("owner/clothes") >= 2
    assert "hf_" not in login + "".join(said)


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`(hub\.\w+)`", PAGE))))
def test_its_keys_exist(key: str) -> None:
    assert re.search(rf"^  {key.removeprefix('hub.')}:", (ROOT / "conf/config.yaml").read_text(), re.MULTILINE)
