"""What an optimizer keeps, through a checkpoint on the disk: what goes in comes out, or nothing goes in."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import run_state
from helpers.cli import Cli
from helpers.runs import relative_difference, same_checkpoint, weights
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ddpm_train.runs import checkpoint
from ddpm_train.runs.state import read_state
from ddpm_train.training.muon import MuonAndAdamW
from ddpm_train.training.optimizer_state import NotCaptured, OptimizerState, layout_of

Build = Callable[[Iterable[nn.Parameter]], Optimizer]


class Quantised(Optimizer):
    """Keeps what bitsandbytes and optimizers without a learning rate keep: bytes, codebooks that parameters share, an
    integer step, and an estimate in its groups."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-2, "betas": (0.9, 0.99), "estimate": 1e-6, "count": 0, "scale": None})
        self.codebook = torch.linspace(-1, 1, 256)

    def state_dict(self) -> dict[str, Any]:
        """Nests what it keeps, as bitsandbytes does for FSDP."""
        plain = super().state_dict()
        return {**plain, "state": {index: {"nested": state} for index, state in plain["state"].items()}}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            group["estimate"] = max(group["estimate"], 0.1 / group["count"])
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "state1": torch.full_like(parameter, 127, dtype=torch.uint8)}
                    state |= {"qmap1": self.codebook, "absmax1": torch.ones(()), "half": parameter.bfloat16()}
                state["step"] += 1
                moment = self.codebook[state["state1"].int()] * state["absmax1"] * 0.9 + parameter.grad * 0.1
                moment = moment.contiguous()
                state["absmax1"].copy_(moment.abs().max() + 1e-12)
                state["state1"].copy_(torch.bucketize(moment / state["absmax1"], self.codebook).clamp(max=255))
                state["half"].lerp_(parameter.bfloat16(), 0.5)
                group["scale"] = 1 + state["half"].float().mean()
                parameter -= group["lr"] * group["estimate"] * group["scale"] * moment / state["step"] ** 0.5


def muon(parameters: Iterable[nn.Parameter]) -> Optimizer:
    kept = list(parameters)
    adamw = torch.optim.AdamW([each for each in kept if each.ndim == 1], fused=True)
    matrices = [each for each in kept if each.ndim > 1]
    return MuonAndAdamW(matrices, adamw, lr=1e-2, momentum=0.9, weight_decay=0.1)


# Not a package that tests install: diffusers imports it wherever it is, which takes seconds.
def adamw_8bit(parameters: Iterable[nn.Parameter]) -> Optimizer:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, min_8bit_size=16)  # type: ignore[no-any-return]


OPTIMIZERS: dict[str, Build] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "adam amsgrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    **{
        name: getattr(torch.optim, name)
        for name in ("NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "Adafactor", "ASGD", "RMSprop", "Rprop")
    },
    "quantised": Quantised,
    "muon": muon,
    "adamw_8bit": adamw_8bit,
}


def network(name: str) -> nn.Module:
    """As a run lays it out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3))
    return network if name == "adamw_8bit" else network.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def equal(one: tuple[dict[str, Tensor], dict[str, Any]], other: tuple[dict[str, Tensor], dict[str, Any]]) -> bool:
    """Also in dtype, and scalars in type."""
    same = one[0].keys() == other[0].keys() and all(
        value.dtype == other[0][name].dtype and torch.equal(value, other[0][name]) for name, value in one[0].items()
    )
    return same and [(*item, type(item[1])) for item in one[1].items()] == [
        (*item, type(item[1])) for item in other[1].items()
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_goes_in_comes_out(name: str, tmp_path: Path) -> None:
    whole = network(name)
    optimizer = OPTIMIZERS[name](whole.parameters())
    kept = OptimizerState(optimizer)
    train(whole, optimizer, range(3))
    tensors, scalars = kept.capture()
    sets = {"unet": whole.state_dict(), "optimizer": tensors}
    copies = {
        name: {key: value.clone(memory_format=torch.contiguous_format) for key, value in named.items()}
        for name, named in sets.items()
    }
    path = checkpoint.save(tmp_path, 3, copies, replace(run_state(3), optimizer=scalars).to_json())

    resumed = network(name)
    optimizer_again = OPTIMIZERS[name](resumed.parameters())
    kept_again = OptimizerState(optimizer_again)
    stored = checkpoint.load(path)
    resumed.load_state_dict(dict(stored["unet"]))
    kept_again.allocate(layout_of(stored["optimizer"]), read_state(path).optimizer)
    for key, tensor in kept_again.capture()[0].items():
        tensor.copy_(stored["optimizer"][key])
    assert equal(kept.capture(), kept_again.capture())
    train(whole, optimizer, range(3, 6))
    train(resumed, optimizer_again, range(3, 6))
    assert equal(kept.capture(), kept_again.capture())
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_settings_are_not_state() -> None:
    """A weight decay that the user changes is what a resumed run uses."""
    optimizer = torch.optim.AdamW(network("adamw").parameters(), weight_decay=0.1)
    assert OptimizerState(optimizer).capture() == ({}, {})


KEEPS_A_LIST = """
from dataclasses import dataclass
from typing import Literal

import torch
from ddpm_train.config.optimizers import OPTIMIZERS, Optimizer


class WithHistory(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("history", []).append(float(parameter.norm()))


@OPTIMIZERS.choice
@dataclass(frozen=True)
class History(Optimizer):
    name: Literal["history"]

    def build(self, parameters):
        return WithHistory(parameters, lr=self.lr)
"""


def test_state_that_a_checkpoint_cannot_hold_is_told_at_the_first_step(cli: Cli) -> None:
    (cli.folder / "histories.py").write_text(KEEPS_A_LIST)
    (cli.folder / "optimizer").mkdir()
    (cli.folder / "optimizer/history.yaml").write_text("name: history\nlr: 1e-3\n")
    said = cli.train("--config-dir", ".", "extensions=[histories]", "optimizer=history", "tracker=none", expect=4)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert line.startswith(
        "error: optimizer: WithHistory keeps state that a checkpoint cannot hold (0.history, a list);"
    )
    assert not (cli.output() / "checkpoints").exists()


def test_state_of_something_else_than_parameters_is_refused() -> None:
    optimizer = torch.optim.SGD(network("sgd").parameters(), lr=1e-2)
    optimizer.state["all"] = {"step": 1}  # type: ignore[index]
    with pytest.raises(NotCaptured, match="more than its parameters'"):
        OptimizerState(optimizer).capture()


def test_another_optimizer_and_a_new_average_begin_afresh(cli: Cli) -> None:
    """Where the user has accepted the change: the weights go on, the average begins at them."""
    run = ("tracker=none", "evaluation=none", "lr_scheduler=constant")
    cli.train(*run, "ema=none", "train.max_steps=3")
    begun = weights(cli.output(), step=3)
    changed = ("optimizer=sgd", "optimizer.lr=1e-3", "ema=warmup", "allow_change=[optimizer,ema]", "train.max_steps=4")
    assert "optimizer.name: adamw -> sgd (accepted, recorded)" in cli.train(*run, *changed)
    after = weights(cli.output(), step=4)
    assert after.keys() == begun.keys() and 0 < relative_difference(begun, after) < 1e-2
    state = load_file(cli.output() / "checkpoints/step_00000004/optimizer.safetensors")
    assert {name.split(".")[1] for name in state} == {"momentum_buffer"}
    average = weights(cli.output(), "ema", step=4)
    assert all(torch.isfinite(value).all() for value in average.values())
    assert relative_difference(after, average) <= relative_difference(begun, after)


@pytest.mark.slow
def test_a_run_with_8_bit_state_resumes_to_the_bit(cli: Cli) -> None:
    """Wide enough for blocks of 8-bit numbers: smaller tensors keep theirs in float32."""
    pytest.importorskip("bitsandbytes")
    run = ("optimizer=adamw_8bit", "model.block_out_channels=[8,32]", "train.channels_last=auto", "tracker=none")
    run = (*run, "evaluation=none", "lr_scheduler=constant")
    cli.train(*run, "name=whole")
    cli.train(*run, "name=parts", "train.max_steps=3")
    cli.train(*run, "name=parts")
    same_checkpoint(cli.output("parts"), cli.output("whole"), 6)
    (line,) = cli.train(*run, "train.channels_last=true", expect=2).splitlines()
    assert line == (
        "error: train.channels_last=true: optimizer=adamw_8bit lays the weights out contiguously; use false or auto"
    )
