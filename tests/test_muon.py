"""Muon on convolutions: that of torch on the same matrices, whatever their layout, beside AdamW for the rest."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli import TINY
from helpers.runs import weights
from torch import Tensor, nn

import ddpm_train
from ddpm_train.config.optimizers import Muon
from ddpm_train.config.program import compose_configs
from ddpm_train.models.unet import build_unet
from ddpm_train.training.preflight import PROGRAM


def network(layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)])
    return nn.ModuleDict({"conv_in": nn.Conv2d(3, 8, 3), "down_blocks": blocks}).to(memory_format=layout)


def trained(layout: torch.memory_format, config: Muon) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The weights after three steps, and the gradients of each step."""
    model, gradients = network(layout), []
    optimizer = config.build(model.named_parameters())
    for step in range(3):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))  # laid out like it
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
    assert all(parameter.is_contiguous(memory_format=layout) for parameter in model.parameters() if parameter.ndim == 4)
    return dict(model.named_parameters()), gradients


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_it_is_torchs_muon_on_matrices_in_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which iterates in bfloat16, but for this test, in float32 as ours does on a CPU."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    config = Muon("muon", 1e-2, 1e-3, 0.9, (0.9, 0.99), 1e-8, 0.1)
    ours, gradients = trained(torch.contiguous_format, config)
    last, _ = trained(torch.channels_last, config)
    assert all(torch.equal(ours[name], last[name]) for name in ours)
    theirs = dict(network(torch.contiguous_format).named_parameters())
    blocks = [name for name in theirs if name.startswith("down_blocks") and name.endswith("weight")]
    matrices = {name: nn.Parameter(theirs[name].detach().flatten(1)) for name in blocks}
    rest = {name: parameter for name, parameter in theirs.items() if name not in blocks}
    muon = torch.optim.Muon(matrices.values(), lr=1e-2, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest.values(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for each in gradients:
        for name, parameter in {**matrices, **rest}.items():
            parameter.grad = each[name].view_as(parameter)
        muon.step()
        adamw.step()
    assert len(blocks) == 2
    for name, parameter in {**matrices, **rest}.items():
        assert torch.allclose(ours[name].view_as(parameter), parameter, atol=1e-7), name


def test_the_two_rates_keep_their_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While the schedule moves them; and what is AdamW's are norms, biases, first and last layers, and embeddings.

    A torch before 2.9, which has no Muon, does for it.
    """
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keys = {key: yaml.safe_load(value) for key, value in (override.split("=", 1) for override in TINY)}
    keys |= {"optimizer": "muon", "optimizer.lr": 1e-3, "optimizer.adamw_lr": 1e-30, "optimizer.weight_decay": 0.0}
    keys |= {"train.max_steps": 2, "evaluation": "none", "tracker": "none", "train.mixed_precision": "no"}
    ddpm_train.train(tmp_path / "run", keys)
    ((config, _),) = compose_configs(PROGRAM, TINY)
    begun = build_unet(config.model, config.dataset, config.noise_scheduler, seed=0).state_dict()
    now = weights(tmp_path / "run", step=2)
    moved = {name for name in now if not torch.allclose(now[name], begun[name], rtol=0, atol=1e-20)}
    blocks = {name for name, value in begun.items() if "_block" in name and value.ndim > 1}
    assert moved == blocks and len(blocks) == 47
