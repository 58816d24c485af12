"""Runs that push: what of them is shared, when, and that nothing at the Hub slows, stops or changes a run."""

import getpass
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.cli import Cli, ended
from helpers.hub.client import HubCli, hash_of_images
from helpers.hub.server import LoopbackHub
from helpers.runs import REQUEUE, records, steps_written, wait_for

from ddpm_train.runs import checkpoint

PUSH = ("hub.push=true", "hub.repo_id=tester/cats")
PLAIN = {
    *(".gitattributes", "README.md", "config.yaml", "metrics.jsonl", "model_index.json"),
    *("scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
}
PARTS = ("ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json", "unet.safetensors")
QUICK = ("evaluation=none", "lr_scheduler=constant", "checkpoint.every_steps=3")


def files(hub: LoopbackHub, branch: str = "main", repo: str = "tester/cats") -> set[str]:
    return {name for name, entry in hub.head(repo, branch).entries.items() if entry["type"] == "file"}


def titles(hub: LoopbackHub, branch: str = "main") -> list[str]:
    return [commit.title for commit in hub.head("tester/cats", branch).history()]


def metadata(card: str) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return values


# What is shared -------------------------------------------------------------------------------------------------------


def test_what_a_reader_finds(hub_cli: HubCli, write_images: Callable[[Path, int], Path]) -> None:
    """A pipeline that plain diffusers loads, a card that says what it is, and nothing that is nobody's business."""
    write_images(hub_cli.folder / "my_cats", 40)
    secret = ("dataset=imagefolder", "dataset.path=my_cats", "dataset.channels=1", "+tracker.tensorboard.comment=me")
    said = hub_cli.train(
        *PUSH,
        *secret,
        "name=default",
        "hub.strategy=checkpoint",
        "checkpoint.every_steps=3",
        f"checkpoint.mirror={hub_cli.folder / 'mirror'}",
        f"dataset.cache_dir={hub_cli.folder / 'prepared'}",
    )
    hub = hub_cli.hub
    (line,) = [line for line in said.splitlines() if line.startswith("  pushed ")]
    assert line == f"  pushed     {hub.url}/tester/cats (step 6, commit {hub.head('tester/cats').id[:12]})"
    assert files(hub) == PLAIN | {"samples.png"} | {f"last-checkpoint/{part}" for part in PARTS}
    folder = hub.head("tester/cats").folder
    card = (folder / "README.md").read_text()
    described = metadata(card)
    assert "## Does it copy its training images?\n\nThat was not measured.\n" in card
    assert described["library_name"] == "diffusers" and described["pipeline_tag"] == "unconditional-image-generation"
    assert {"ddpm", "unconditional-image-generation"} <= set(described["tags"]) and "datasets" not in described
    held_out = records(hub_cli.output())[-1]["held_out_loss"]
    assert described["model-index"][0]["results"][0]["metrics"][0]["value"] == held_out
    for text in (
        *("8x8 grey images", "a folder of images, licence unknown", "after 6 steps", "![samples](samples.png)"),
        *('DDPMPipeline.from_pretrained("tester/cats")', f"| Held-out loss ↓ | {held_out:.5g} | step 6, "),
        *(
            "| Batch | 16 (micro-batches of 16) |",
            "| Hardware | cpu, 1 thread |",
            "| Time | ",
            "torch 2",
            "diffusers 0",
        ),
        *("resume=hf://tester/cats", "dataset.path=…", "| Seed | 0 |", "learning rate 0.001"),
    ):
        assert text in card, text
    # The recipe runs again; nothing names this machine, its user, its folders or the token.
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["dataset"]["path"] == "???" and config["hub"]["push"] is False and config["train"]["batch_size"] == 16
    words = {
        str(hub_cli.folder),
        str(Path.home()),
        "hf_right",
        "/tmp",
        "my_cats",
        "comment",
        getpass.getuser(),
        socket.gethostname(),
    }
    for path in folder.rglob("*"):
        if path.is_file():
            # Random weights hold any two or three letters somewhere, such as a short host name.
            telling = [word for word in words if len(word) > 3 or path.suffix != ".safetensors"]
            content = path.read_bytes()
            found = [word for word in telling if re.search(rf"(?<!\w){re.escape(word)}(?!\w)".encode(), content)]
            assert not found, (path.name, found)
    # Of each step a record; the grid; the weights of the average.
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == [1, 2, 3, 4, 5, 6]
    assert (folder / "samples.png").read_bytes() == (hub_cli.output() / "samples/step_00000006.png").read_bytes()
    assert hub_cli.images("tester/cats") == hash_of_images(str(hub_cli.output() / "pipeline"))


@pytest.mark.parametrize(
    ("strategy", "steps", "extra"),
    [
        ("end", ["Step 6"], set()),
        ("every_save", ["Step 6"], set()),
        ("checkpoint", ["Step 6"], {f"last-checkpoint/{part}" for part in PARTS}),
        (
            "all_checkpoints",
            ["Step 6"],
            {f"checkpoints/step_0000000{step}/{part}" for part in PARTS for step in (3, 6)},
        ),
    ],
)
def test_strategies(hub_cli: HubCli, strategy: str, steps: list[str], extra: set[str]) -> None:
    hub = hub_cli.hub
    hub_cli.train(*PUSH, *QUICK, f"hub.strategy={strategy}", "hub.revision=dev", "hub.private=true")
    assert files(hub, "dev") == PLAIN | extra and titles(hub, "dev")[0] == "Step 6"
    assert titles(hub, "dev").count("Step 3") <= (strategy != "end") and "tester/cats" in hub.private
    assert files(hub, "main") == {".gitattributes"}
    checkpoints = {Path(name).parent for name in extra}
    for path in checkpoints:
        checkpoint.verify(hub.head("tester/cats", "dev").folder / path)


def test_scores_and_the_dataset_of_the_card(hub_cli: HubCli) -> None:
    """Measured scores stand with what they depend on, unless they are of other weights."""
    hub_cli.train(*QUICK)
    depends_on = {"step": 6, "weights": "ema", "sampler": {"name": "dpm_solver"}, "num_inference_steps": 25}
    depends_on |= {"seed": 0, "num_images": 2048, "extractor": "efficientnet_lite0"}
    depends_on |= {"reference": {"dataset": "/home/me/cats", "split": "validation", "num_images": 500}}
    kid = {"name": "kid_efficientnet_lite0_n2048", "metric": "kid", "value": 0.0123, "standard_deviation": 0.0004}
    warning = "[few](http://x) | images\n# in all"
    kid |= {"interval": [0.0115, 0.0131], "lower_is_better": True, "warning": warning, "depends_on": depends_on}
    old = {**kid, "name": "fid", "metric": "fid", "value": 3.0, "depends_on": {**depends_on, "step": 3}}
    (hub_cli.output() / "evaluation").mkdir(exist_ok=True)
    copy_rate = {**kid, "name": "copy_rate_efficientnet_lite0_n2048", "metric": "copy_rate", "value": 0.0049}
    copying = {"copy_rate": 0.0049, "interval": [0.0023, 0.0089], "held_out_rate": 0.01, "num_images": 2048, "step": 6}
    copying |= {"extractor": "efficientnet_lite0", "threshold": 8.25, "quantile": 0.01, "nearest_distance": 7.5}
    copying |= {"held_out_images": 497, "left_out": 3, "training_images": 2000, "cautions": []}
    scores = {"scores": [kid, copy_rate, old], "copying": copying}
    (hub_cli.output() / "evaluation/scores.json").write_text(json.dumps(scores))
    hub_cli.push("run=outputs/default", "repo_id=tester/cats")
    card = (hub_cli.hub.head("tester/cats").folder / "README.md").read_text()
    assert (
        "| KID ↓ | 0.0123 [0.0115, 0.0131] | step 6, average of the weights, 2,048 images, dpm_solver, 25 steps, "
        "features of efficientnet_lite0, against 500 images of split validation, seed 0, "
        "\\[few\\](http://x) \\| images\\\\n# in all |"
    ) in card
    assert "FID" not in card and "/home/me" not in card and "fashion_tiny, licence MIT" in card
    for text in (
        "**No sign of it.** A sample counts as a copy if",
        "| Copy rate | 0.49 % (0.23 to 0.89) of 2,048 samples |",
        "| Threshold | a distance of 8.25 to the nearest training image, in EfficientNet-Lite0 features: the nearest ",
        "| Nearest pair | a sample at a distance of 7.50 from its training image |",
        "| Rests on | 497 held-out images; 3 more are training images as well and do not count; 2,000 training images ",
        "| Samples by | dpm_solver, 25 steps |",
    ):
        assert text in card, text
    assert card.count("Copy rate") == 1  # and no row among the scores
    (result,) = metadata(card)["model-index"][0]["results"]  # type: ignore[index]
    assert result["metrics"] == [
        {"type": "kid", "value": 0.0123, "name": "kid_efficientnet_lite0_n2048"},
        {"type": "copy_rate", "value": 0.0049, "name": "copy_rate_efficientnet_lite0_n2048"},
    ]


# Nothing holds a run up -----------------------------------------------------------------------------------------------


def same_weights(ours: Path, theirs: Path) -> None:
    for name in ("unet", "ema", "optimizer"):
        file = f"checkpoints/step_00000006/{name}.safetensors"
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    assert records(ours) == records(theirs)


def test_a_push_that_hangs_is_not_waited_for(hub_cli: HubCli) -> None:
    """The run ends as one that does not push; it says what is not there, and the command that it names does it."""
    hub = hub_cli.hub
    hub_cli.train(*QUICK, "name=alone")
    hub.fault("PUT /upload/", "stall", 1000)
    said = hub_cli.train(*PUSH, *QUICK, "hub.stall_seconds=60", "hub.finish_minutes=0.04")
    same_weights(hub_cli.output(), hub_cli.output("alone"))
    assert "done: step 6" in said and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("ERROR")]
    assert line == (
        "ERROR: step 6 was NOT pushed to tester/cats, because it did not end within 2 s; "
        "`ddpm-push run=outputs/default` pushes it"
    )
    assert not list(hub_cli.output().glob(".push*"))
    hub.faults.clear()
    said = hub_cli.push("run=outputs/default")
    assert f"pushed     {hub.url}/tester/cats (step 6, commit " in said and titles(hub) == ["Step 6", "Add files"]
    # The same command again has nothing to train, and pushes what is not there.
    hub.commit_files("models", "tester/cats", "main", {"README.md": None})
    assert "nothing to do" in hub_cli.train(*PUSH, *QUICK) and "README.md" in files(hub)


def test_a_hub_that_fails_all_along(hub_cli: HubCli) -> None:
    hub = hub_cli.hub
    hub.fault("POST /commit/", 503, 1000)
    said = hub_cli.train(*PUSH, *QUICK, "hub.retry_minutes=0.01")
    assert "done: step 6" in said and "Traceback" not in said
    assert (
        "ERROR: step 6 was NOT pushed to tester/cats, because the Hub answers 503: Injected failure; `ddpm-push "
        "run=outputs/default` pushes it"
    ) in said


def test_the_newest_wins(hub_cli: HubCli) -> None:
    """While one push is in flight training goes on; of what came meanwhile only the newest is pushed."""
    hub = hub_cli.hub
    stall = hub.fault("POST /commit/", "stall", 1)
    process = hub_cli.start_training(
        *(*PUSH, *QUICK, "train.max_steps=60", "checkpoint.keep_last=1", "train.log_every_steps=1"),
        "hub.stall_seconds=50",
    )
    wait_for(lambda: stall.happened == 1, process)
    wait_for(lambda: (hub_cli.output() / "pipeline/training.json").exists(), process)
    hub.release.set()
    assert "(step 60, commit" in ended(process, 0)
    # The first, whose files were pruned long ago, came through whole.
    assert titles(hub) == ["Step 60", "Step 3", "Add files"]
    assert not list(hub_cli.output().glob(".push*"))


def test_a_signal_waits_a_little_for_the_push(hub_cli: HubCli) -> None:
    process = hub_cli.start_training(*PUSH, *QUICK, "train.max_steps=100000", "train.log_every_steps=1")
    wait_for(lambda: steps_written(hub_cli.output()) > 10, process)
    process.terminate()
    assert "stopped (SIGTERM)" in ended(process, REQUEUE)
    last = checkpoint.published(hub_cli.output() / "checkpoints")[-1]
    assert titles(hub_cli.hub)[0] == f"Step {checkpoint.step_of(last)}"


def test_several_processes_do_not_wait_for_a_push_that_fails(hub_cli: HubCli) -> None:
    """One of them talks to the Hub; the others leave when training is over."""
    hub_cli.hub.fault("PUT /upload/", "stall", 1000)
    brief = ("hub.finish_minutes=0.02", "hub.stall_seconds=60", "hub.retry_minutes=0.01")
    said = hub_cli.together(*PUSH, *QUICK, *brief, num_processes=2)
    assert "done: step 6" in said and "NOT pushed to tester/cats, because it did not end within 1 s" in said
    asked = [request for request in hub_cli.hub.requests if "whoami" in request.path]
    assert len(asked) == 1


# Before the first step ------------------------------------------------------------------------------------------------


def test_all_mistakes_at_once_and_before_anything_else(hub_cli: HubCli) -> None:
    hub = hub_cli.hub

    def told(*overrides: str, **environment: str) -> list[str]:
        said = hub_cli.train("hub.push=true", *QUICK, *overrides, expect=2, **environment)
        assert not (hub_cli.folder / "outputs").exists()
        return [line.removeprefix("error: ") for line in said.splitlines()]

    login = "log in with `hf auth login`, or set HF_TOKEN to one that may write"
    assert told("train.batch_size=0", "resume=hf://cats", HF_TOKEN="hf_wrong") == [
        "train.batch_size=0: must be greater than 0",
        "resume=hf://cats: not of the form hf://owner/name or hf://owner/name@revision",
        "hub.repo_id=null: where to? give hub.repo_id=owner/name",
        f"hub.push=true: the Hub refuses this token; {login}",
    ]
    assert told("hub.repo_id=a b/c", HF_TOKEN="") == [
        "hub.repo_id=a b/c: cannot be a repository; give owner/name, of letters, digits and single - _ .",
        f"hub.push=true: no token; {login}",
    ]
    assert told(f"hub.repo_id=tester/{'x' * 97}") == [
        f"hub.repo_id=tester/{'x' * 97}: 97 characters; the Hub takes names of at most 96"
    ]
    hub.role = "read"
    assert told("hub.repo_id=google/cats") == [
        "hub.push=true: this token may only read; make one that may write, and set HF_TOKEN to it",
        "hub.repo_id=google/cats: this token belongs to tester and team; give hub.repo_id=tester/cats",
    ]
    hub.role = "write"
    for name in ("tester/locked", "tester/open"):
        (hub.root / "models" / name).mkdir(parents=True)
    hub.fault("POST /api/models/tester/locked/preupload/", 403)
    assert told("hub.repo_id=tester/locked") == [
        "hub.repo_id=tester/locked: this token may not write there; use another, or another repository"
    ]
    assert told("hub.repo_id=tester/open", "hub.private=true") == [
        "hub.private=true: tester/open exists and is public; change that in its settings"
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert told("hub.repo_id=tester/cats", HF_ENDPOINT=nobody) == [
        f"hub.push=true: the Hub cannot be reached (ConnectError); check the network and HF_ENDPOINT={nobody}, "
        "or HF_HUB_OFFLINE=1 to train without pushing"
    ]
    hub.fault("GET /api/whoami-v2", 503, 1000)
    assert told("hub.repo_id=tester/cats") == [
        "hub.push=true: the Hub answers 503: Injected failure; try again later, or HF_HUB_OFFLINE=1 to train "
        "without pushing"
    ]


def test_offline_is_told_in_one_line_and_pushed_later(hub_cli: HubCli) -> None:
    offline = hub_cli.train(*PUSH, *QUICK, HF_HUB_OFFLINE="1")
    (line,) = [line for line in offline.splitlines() if "HF_HUB_OFFLINE" in line]
    assert (
        line == "warning: HF_HUB_OFFLINE is set, so nothing is pushed; `ddpm-push run=outputs/default` pushes it later"
    )
    assert not hub_cli.hub.requests
    assert hub_cli.push("run=outputs/default", expect=2, HF_HUB_OFFLINE="1") == (
        "error: run=outputs/default: HF_HUB_OFFLINE is set; unset it to push\n"
    )
    assert hub_cli.push("run=outputs/nowhere", "repo_id=x", "strategy=everything", expect=2).splitlines() == [
        "error: strategy=everything: not one of end, every_save, checkpoint, all_checkpoints",
        "error: run=outputs/nowhere: no such folder; give the folder of a run, such as outputs/default",
        "error: repo_id=x: cannot be a repository; give owner/name, of letters, digits and single - _ .",
    ]


def test_a_run_that_was_begun_goes_on_without_the_hub(hub_cli: HubCli) -> None:
    """A token that has expired, a Hub that is down: a requeued job trains, and says at its end what is not there."""
    hub_cli.train(*PUSH, *QUICK, "train.max_steps=3")
    hub_cli.hub.__exit__()
    said = hub_cli.train(*PUSH, *QUICK, "hub.retry_minutes=0.01")
    assert "resumes at step 3" in said and "done: step 6" in said
    assert "NOT pushed to tester/cats, because the Hub cannot be reached (ConnectError); `ddpm-push run=" in said


def test_a_token_does_not_belong_in_a_command(cli: Cli) -> None:
    """It would be saved, logged and pushed; nor is it repeated in what is said."""
    token = "hf_" + "aB3" * 11
    remedy = (
        "a token does not belong in a command or a config, which are saved and pushed; log in with `hf auth login`, "
        "or set HF_TOKEN"
    )
    command = ("-m", "ddpm_train.cli.train")
    said = cli.python(*command, f"hub.token={token}", f"name={token}", "--hub_token", token, expect=2)
    assert token not in said and "aB3" not in said
    assert said.splitlines()[:3] == [
        f"error: hub.token: {remedy}",
        f"error: name: {remedy}",
        f"error: hf_…: {remedy}",
    ]
    assert cli.python(*command, "+hub.token=secret", expect=2) == f"error: +hub.token: {remedy}\n"
    (cli.folder / "mine/experiment").mkdir(parents=True)
    (cli.folder / "mine/experiment/x.yaml").write_text(f"# @package _global_\nhub: {{token: {token}}}\n")
    said = cli.python(*command, "--config-dir", "mine", "experiment=x", expect=2)
    assert token not in said and f"error: hub.token: {remedy}" in said
    assert not (cli.folder / "outputs").exists()
