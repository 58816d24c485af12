"""Learning rate and average as functions of the step, against diffusers' own."""

import copy
import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from ddpm_train.config.ema import WarmupEMA
from ddpm_train.config.optimizers import LR_SCHEDULERS, SGD, WSD, Adam, Constant, Cosine, Linear
from ddpm_train.training.state import update_ema


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine"])
def test_learning_rate_follows_diffusers(name: str) -> None:
    """After the warm-up, which differs on purpose: diffusers spends its first update at a rate of 0."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=100)
    kind = name.removesuffix("_with_warmup")
    ours = LR_SCHEDULERS[kind](kind, warmup_steps=10)
    for step in range(100):
        if step >= 10:
            assert ours.at(step, 0.5, 100) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_from_the_first_update() -> None:
    config = Constant("constant", warmup_steps=4)
    assert [config.at(step, 1.0, 100) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_wsd_stays_and_then_falls_to_0() -> None:
    """As 1 - sqrt over its last steps; a longer one has the same rates up to where it branches."""
    wsd = WSD(name="wsd", warmup_steps=10, cooldown_fraction=0.25)
    rates = [wsd.at(step, 2.0, 110) for step in range(111)]
    assert wsd.branches_at(110) == 85 and rates[10:86] == [2.0] * 76 and rates[110] == 0
    assert rates[86:] == pytest.approx([2 * (1 - math.sqrt((step - 85) / 25)) for step in range(86, 111)])
    assert rates[:86] == [wsd.at(step, 2.0, 500) for step in range(86)]
    assert [wsd.at(step, 1.0, 4) for step in range(3)] == [1 / 11, 2 / 11, 3 / 11] and wsd.branches_at(4) == 10


def test_a_horizon_of_its_own() -> None:
    """With the same horizon, runs of other lengths have the same rates; a run may not outlast it."""
    for kind in (Linear("linear", 5, total_steps=90), Cosine("cosine", 5, total_steps=90), WSD("wsd", 5, 90)):
        assert [kind.at(step, 1.0, 30) for step in range(90)] == [kind.at(step, 1.0, 90) for step in range(90)]
        assert not list(kind.length_mistakes(90))
        assert list(kind.length_mistakes(91)) == [
            "lr_scheduler.total_steps=90: the learning rate would be 0 from there on, and the run has 91 steps; use at "
            "least 91, or null"
        ]


def test_ema_is_diffusers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    ours = copy.deepcopy(model)
    config = WarmupEMA(name="warmup", max_decay=0.99, min_decay=0.1, inv_gamma=2.0, power=0.75, update_after_step=3)
    theirs = EMAModel(
        model.parameters(),
        decay=0.99,
        min_decay=0.1,
        update_after_step=3,
        use_ema_warmup=True,
        inv_gamma=2.0,
        power=0.75,
    )
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        update_ema(list(ours.parameters()), list(model.parameters()), config.decay(step))
        theirs.step(model.parameters())
        assert config.decay(step) == pytest.approx(theirs.cur_decay_value)
        for mine, shadow in zip(ours.parameters(), theirs.shadow_params, strict=True):
            assert torch.allclose(mine, shadow, atol=1e-6)


@pytest.mark.parametrize(
    "config, kind",
    [
        (Adam("adamw", 1e-3, (0.9, 0.99), 1e-8, 0.1), torch.optim.AdamW),
        (Adam("adam", 1e-3, (0.9, 0.99), 1e-8, 0.0), torch.optim.Adam),
        (SGD("sgd", 1e-3, 0.9, 0.0, True), torch.optim.SGD),
    ],
)
def test_optimizers_minimise(config: Adam | SGD, kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = config.build([("weight", weight)])
    assert type(optimizer) is kind
    for _ in range(50):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert 0 < weight.item() < 0.97 and math.isfinite(weight.item())
