"""Training from Python: the command line's run, to the bit."""

import json
import re
import signal
from pathlib import Path

import pytest
from helpers.cli import ROOT, TINY, Cli
from helpers.runs import steps_written, wait_for

import ddpm_train

# TINY as keywords.
KEYS = """
KEYS = dict(
    dataset={"name": "fashion_tiny", "resolution": 8, "num_workers": 2},
    model={
        "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4, "attention_head_dim": 8,
    },
    lr_scheduler={"name": "cosine", "warmup_steps": 0},
    optimizer={"name": "adamw", "lr": 1e-3},
    evaluation={"num_images": 4, "num_inference_steps": 2, "batch_size": 512},
)
TRAIN = dict(batch_size=16, mixed_precision="no", channels_last=False, attention="fused", compile=False)
TRAIN["log_every_steps"] = 2
"""
TRAIN_IT = """
import ddpm_train
seen = []
run = ddpm_train.train("outputs/python", on_record=seen.append, train={**TRAIN, "max_steps": 6}, **KEYS)
assert [record["step"] for record in seen] == [1, 2, 3, 4, 5, 6, 6], seen
assert run.records == [*seen[:5], {**seen[5], **seen[6]}] and "held_out_loss" in seen[-1] and run.result["step"] == 6
assert len(run.sample(3, num_inference_steps=2)) == 3
assert run.sample(2, output="np", num_inference_steps=2).shape == (2, 8, 8, 1)
(score,) = run.evaluate(metrics=["held_out_loss"]).values()
assert abs(score.value - seen[-1]["held_out_loss"]) < 1e-6
again = ddpm_train.train("outputs/python", train={**TRAIN, "max_steps": 6}, **KEYS)
assert again.result == run.result
"""


@pytest.mark.slow
def test_the_same_run_as_the_command_lines(cli: Cli) -> None:
    """To the bit; each goes on where the other stopped; a script needs no guard against its own workers."""
    (cli.folder / "script.py").write_text(KEYS + TRAIN_IT)
    cli.python("script.py")
    cli.train("name=command")
    files = [f"checkpoints/step_00000006/{name}.safetensors" for name in ("unet", "ema", "optimizer")]
    for file in (*files, "samples/step_00000006.png", "pipeline/unet/diffusion_pytorch_model.safetensors"):
        assert (cli.output("python") / file).read_bytes() == (cli.output("command") / file).read_bytes(), file
    said = cli.train("name=python", "train.max_steps=8")
    assert "resumes at step 6" in said
    more = 'ddpm_train.train("outputs/command", train={**TRAIN, "max_steps": 8}, **KEYS)'
    cli.python("-c", f"{KEYS}\nimport ddpm_train\n{more}")
    for name in ("unet", "ema", "optimizer"):
        file = f"checkpoints/step_00000008/{name}.safetensors"
        assert (cli.output("python") / file).read_bytes() == (cli.output("command") / file).read_bytes(), file
    # What repeats it is a command.
    environment = json.loads((cli.output("python") / "environment.json").read_text())
    command = environment[0]["command"]
    assert command.startswith("ddpm-train ") and "dataset=fashion_tiny dataset.resolution=8" in command


def test_all_mistakes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ddpm_train.Mistakes) as caught:
        ddpm_train.train("outputs/x", {"optimizer.lr": -1}, dataset="fashion_tyny", train={"max_step": 3})
    assert caught.value.lines == (
        "dataset=fashion_tyny: no such config; did you mean 'fashion_tiny'? (one of arrays, base, cifar10, "
        "fashion_mnist, fashion_tiny, flowers102, hub, imagefolder)",
        "train.max_step=3: no such key; did you mean 'train.max_steps'?",
        "optimizer.lr=-1: must be greater than 0",
    )
    assert str(caught.value).count("\n") == 2 and not (tmp_path / "outputs").exists()
    with pytest.raises(ddpm_train.Mistakes, match="fidd: not one of"):
        ddpm_train.evaluate("outputs/x", metrics=["fidd"])


STOP_IT = """
import signal, sys
import ddpm_train
before = signal.getsignal(signal.SIGTERM)
try:
    ddpm_train.train("outputs/python", train={**TRAIN, "max_steps": 100_000}, **KEYS)
except ddpm_train.Stopped as stopped:
    assert str(stopped) == "SIGTERM" and signal.getsignal(signal.SIGTERM) == before
    sys.exit(75)
"""


def test_asked_to_stop(cli: Cli) -> None:
    process = cli.fork("-c", KEYS + STOP_IT)
    wait_for(lambda: steps_written(cli.output("python")) > 0, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    last = sorted((cli.output("python") / "checkpoints").glob("step_*"))[-1]
    steps = len((cli.output("python") / "metrics.jsonl").read_text().splitlines())
    assert steps == int(last.name.removeprefix("step_")) > 0


OTHER_PRECISION = """
import threading
import ddpm_train
TRAIN |= {"max_steps": 2, "mixed_precision": "bf16"}
first = ddpm_train.train("outputs/main", train={**TRAIN, "mixed_precision": "no"}, **KEYS)
first.evaluate(metrics=["held_out_loss"])
threads = [threading.Thread(target=lambda: ddpm_train.train("outputs/thread", train=TRAIN, **KEYS))]
threads[0].start()
threads[0].join()
"""


def test_several_runs_of_one_process(cli: Cli) -> None:
    """In another precision, also after an evaluation; in a thread, where Python does not listen to signals."""
    cli.python("-c", KEYS + OTHER_PRECISION)
    precisions = [
        json.loads((cli.output(name) / "environment.json").read_text())[0]["compute"]["mixed_precision"]
        for name in ("thread", "main")
    ]
    assert precisions == ["bf16", "no"]


IN_THE_MAIN_FILE = """
import ddpm_train
from ddpm_train.config.dataset import DATASET_SOURCES
from ddpm_train.data.sources import EmbeddedSource
class Mine(EmbeddedSource):
    pass
DATASET_SOURCES.add("mine", Mine)
try:
    ddpm_train.train("outputs/main", {"dataset.source": "mine"}, train=TRAIN, **KEYS)
except ddpm_train.Mistakes as mistakes:
    print(*mistakes.lines)
"""


def test_a_source_that_workers_could_not_find(cli: Cli) -> None:
    said = cli.python("-c", KEYS + IN_THE_MAIN_FILE).splitlines()
    assert said[-1] == (
        "dataset.source=mine: Mine is defined in the program's main file, which worker processes do not run; "
        "put it into a module of its own"
    )


def test_the_page_names_what_there_is() -> None:
    text = (ROOT / "docs/python.md").read_text()
    for name in re.findall(r"ddpm_train\.(\w+)", text):
        assert hasattr(ddpm_train, name), name
    for name in re.findall(r"`run\.(\w+)", text):
        assert hasattr(ddpm_train.TrainedRun, name) or name in ddpm_train.TrainedRun.__annotations__, name


def test_the_keywords_are_tiny(tmp_path: Path) -> None:
    from ddpm_train.config.overrides import as_overrides

    keys: dict[str, dict[str, object]] = {}
    exec(KEYS, keys)
    written = as_overrides({**keys["KEYS"], "train": {**keys["TRAIN"], "max_steps": 6}})
    assert {text.replace("0.001", "1e-3") for text in written} - set(TINY) == {
        "dataset=fashion_tiny",
        "optimizer=adamw",
    }
