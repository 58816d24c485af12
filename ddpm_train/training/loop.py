"""The training loop. Everything else is handed in."""

from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from ddpm_train.config.train import Config
from ddpm_train.diffusion.objective import Objective
from ddpm_train.runs.best import Selection
from ddpm_train.seeding import Purpose, derived_seed
from ddpm_train.system.compute import Compute, out_of_memory
from ddpm_train.system.signals import Stopped, StopRequest
from ddpm_train.training.ema import update_ema
from ddpm_train.training.records import Metrics
from ddpm_train.training.state import BatchPlan, TrainState


@dataclass
class Trainer:
    """Takes a run from `state.step` to its end, evaluating and saving on the way.

    Attributes:
        model, optimizer: the state's, as Accelerate prepared them.
        open_data: this process's micro-batches from a step on, see `micro_batches`.
        evaluate: measures `state`; returns named values for its step's record.
        save: starts a checkpoint of `state`; returns the seconds for which that held up the loop.
        save_overdue: whether a checkpoint is due by the clock (on any process).
        progress: shows a step's record to a person.
        cut_smaller: told of a plan with smaller micro-batches, after one did not fit into memory.
        evaluated: whether the evaluation due at `state.step` has been done.
        saved_step: the newest checkpoint's step.
        selection: judges the evaluations.
    """

    config: Config
    plan: BatchPlan
    max_steps: int
    state: TrainState
    model: nn.Module
    optimizer: Any
    objective: Objective
    compute: Compute
    accelerator: Accelerator
    open_data: Callable[[BatchPlan, int], Generator[tuple[Tensor, Tensor], None, None]]
    metrics: Metrics
    stop: StopRequest
    evaluate: Callable[[], dict[str, float]]
    save: Callable[[], float]
    save_overdue: Callable[[], bool]
    progress: Callable[[dict[str, Any]], None]
    cut_smaller: Callable[[BatchPlan], None]
    evaluated: bool
    saved_step: int
    selection: Selection
    _data: Generator[tuple[Tensor, Tensor], None, None] = field(init=False)

    def train(self) -> None:
        """Train to `max_steps`, or until patience ends.

        Raises:
            Stopped: all processes agreed to stop, and a checkpoint was saved.
            NonFinite: on all processes; nothing of the steps it names has reached a checkpoint.
        """
        self.model.train()
        self._data = self.open_data(self.plan, self.state.step)
        try:
            stopping = self._after_step()
            while not self.finished and not stopping:
                self.train_step()
                stopping = self._after_step()
        finally:
            self._data.close()
        if stopping:
            raise Stopped

    @property
    def finished(self) -> bool:
        return is_finished(self.state.step, self.max_steps, self.selection)

    def train_step(self) -> None:
        """One update of weights and average. Nothing in it waits for the device."""
        config, state, accelerator = self.config, self.state, self.accelerator
        lr = config.lr_scheduler.at(state.step, config.optimizer.lr, self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        while (loss := self._gradients()) is None:
            self._cut_smaller()
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), config.train.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        if state.ema_unet is not None:
            update_ema(state.ema_unet, state.unet, config.ema.decay(state.step))
        self.evaluated = not evaluation_due(config, state.step, self.max_steps)
        self.metrics.record(state.step, state.step * self.plan.batch_size, lr, loss, grad_norm)

    def _gradients(self) -> Tensor | None:
        """Accumulate the gradients of this process's piece of the batch; returns its mean loss.

        None if it did not fit into memory and can be cut smaller, which `train.micro_batch_size=auto` allows.
        """
        plan = self.plan
        losses: list[Tensor] = []
        try:
            while len(losses) < plan.accumulation:
                losses.append(self._micro_step(len(losses)))
        except (RuntimeError, MemoryError) as error:
            may_cut = self.config.train.micro_batch_size == "auto" and plan.micro_batch_size > 1
            # The last micro-batch is under way with the other processes, who would not begin it anew.
            exchanging = plan.num_processes > 1 and len(losses) == plan.accumulation - 1
            if exchanging or not (may_cut and out_of_memory(error)):
                raise
            return None
        return torch.stack(losses).mean()

    def _micro_step(self, index: int) -> Tensor:
        """Forward and backward of a micro-batch; returns its loss."""
        config, plan = self.config, self.plan
        positions, images = next(self._data)
        if config.model.dropout:
            # Dropout draws from torch's own generator: seeded by the micro-batch, whichever process has it.
            torch.manual_seed(derived_seed(config.seed, Purpose.DROPOUT, plan.start(self.state.step, index)))
        # The processes exchange gradients once a step, while the last micro-batch goes backward.
        last = index == plan.accumulation - 1
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            with self.compute.attention_kernels():
                loss = self.objective(self.model, images, positions)
            self.accelerator.backward(loss / plan.accumulation)
        return loss.detach()

    def _cut_smaller(self) -> None:
        """Begin the step anew with smaller micro-batches: other cuts, the same images, noise and order."""
        self._data.close()
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        self.plan = replace(self.plan, micro_batch_size=self.plan.micro_batch_sizes()[1])
        self.cut_smaller(self.plan)
        self._data = self.open_data(self.plan, self.state.step)

    def _after_step(self) -> bool:
        """Evaluate, report and save what is due at `state.step`; returns whether to stop."""
        step = self.state.step
        stopping, overdue = self.stop.vote(self.save_overdue())
        if not self.evaluated and not stopping:
            stopping = not self._try_to_evaluate()
        every_steps = self.config.checkpoint.every_steps
        save_due = self.finished or stopping or overdue or bool(every_steps and step % every_steps == 0)
        save_due = save_due or (self.config.checkpoint.keep_best and self.selection.best() == step)
        if save_due or step % self.config.train.log_every_steps == 0:
            # What is saved has been found finite, and its records are on the disk before it is.
            self.metrics.read_back()
            self.metrics.write()
            self.progress(self.metrics.last)
        if save_due and step != self.saved_step:
            self.metrics.carry({"checkpoint_stall_seconds": round(self.save(), 4)})
            self.saved_step = step
            self.metrics.rest_clock()
        return stopping

    def _try_to_evaluate(self) -> bool:
        """Evaluate; False if a request to stop ended it, in which case a resumed run repeats it."""
        self.metrics.read_back()
        try:
            values = self.evaluate()
        except Stopped:
            return False
        self.metrics.annotate(self.state.step, values)
        self.selection.note(self.state.step, values)
        self.metrics.rest_clock()
        self.evaluated = True
        return True


def is_finished(step: int, max_steps: int, selection: Selection) -> bool:
    """Whether a run that stands at `step` is at its end."""
    return step >= max_steps or selection.out_of_patience


def evaluation_due(config: Config, step: int, max_steps: int) -> bool:
    """Whether the run evaluates at `step`: every `evaluation.every_steps` and at the end, but not untrained."""
    if config.evaluation.name == "none" or step == 0:
        return False
    every_steps = config.evaluation.every_steps
    return step == max_steps or bool(every_steps and step % every_steps == 0)
