"""The training loop."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace

import torch
from accelerate.utils.memory import clear_device_cache

from ddpm_train.data.workers import LoadingFailed
from ddpm_train.diffusion.objective import to_model_range
from ddpm_train.seeding import Purpose, derived_seed
from ddpm_train.system.compute import out_of_memory
from ddpm_train.system.signals import StoppedWaiting
from ddpm_train.training.evaluation import Evaluation
from ddpm_train.training.records import Records
from ddpm_train.training.run import Run
from ddpm_train.training.saving import Saving
from ddpm_train.training.state import update_ema


class MicroBatchTooLarge(Exception):
    """A micro-batch did not fit into memory and may be cut smaller. Nothing has changed: the step can begin anew."""


def lr_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group to that of the first, as the optimizer was built."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return [rate / rates[0] if rate and rates[0] else 1.0 for rate in rates]


class Trainer:
    """Takes a run from where it stands to its end."""

    def __init__(self, run: Run, records: Records, evaluation: Evaluation, saving: Saving) -> None:
        self.run = run
        self.state = run.state
        self.model = run.model
        self.optimizer = run.accelerator.prepare_optimizer(run.state.optimizer)
        self.lr_ratios = lr_ratios(run.state.optimizer)
        # Kept, since a walk over the modules takes the host as long as queueing a good part of a step.
        self.parameters = list(self.model.parameters())
        self.unet_parameters = list(run.state.unet.parameters())
        decays = run.config.ema.decays
        self.averages = [(list(unet.parameters()), decays[name]) for name, unet in run.state.averages.items()]
        self.records = records
        self.evaluation = evaluation
        self.saving = saving

    def train(self) -> None:
        """Train to the last step, or until patience ends or copying begins.

        Raises:
            Stopped: all processes agreed to stop, and a checkpoint was saved; or this one waited for images.
            LoadingFailed: no images come any more; a process alone has saved.
            NonFinite: on all processes; nothing of the steps it names has reached a checkpoint.
        """
        self.model.train()
        started_at = self.state.step
        self.micro_batches = self.run.open_micro_batches()
        try:
            while True:
                stopping, overdue = self.run.stop.vote(self.saving.is_overdue)
                evaluate = not stopping and self.evaluation.is_due
                save = stopping or overdue or self.saving.is_due or self.run.is_finished
                log = save or evaluate or self.state.step % self.run.config.train.log_every_steps == 0
                if log:
                    self.records.read_back()
                if save:
                    # What is saved has been found finite, and its records are on the disk before it is.
                    self.write_records()
                    with self.run.console.pace.resting():
                        self.saving.save()
                if evaluate:  # after the save: whatever happens in here, no step is lost
                    with self.run.console.pace.resting():
                        stopping = not self.evaluation.run()  # ended by a request to stop: a resumed run repeats it
                        self.records.write()
                        if stopping or self.saving.is_due or self.run.is_finished:
                            self.saving.save()
                self.saving.settle()
                if stopping or self.run.is_finished:
                    break
                try:
                    self.train_step_within_memory()
                except (LoadingFailed, StoppedWaiting):  # nothing of this step has happened
                    self.save_alone()
                    raise
                self.run.console.step(self.state.step)
                self.run.stop.defer()
                if self.state.step == started_at + 1:
                    self.state.tensors()  # an optimizer whose state cannot be saved is told of now
                if log and not save:
                    self.write_records()  # when the device has its next step to do
        finally:
            self.micro_batches.close()
        if stopping:
            raise self.run.stop.stopped()

    def save_alone(self) -> None:
        """Save before this process leaves, unless that takes others, which do not know of it."""
        if self.run.plan.num_processes == 1:
            self.records.read_back()
            self.write_records()
            self.saving.save()

    def write_records(self) -> None:
        """Write what was read back, to the disk and the trackers, and show the newest."""
        self.records.write()
        self.run.console.progress(self.records.last)

    def train_step(self) -> None:
        """One update of weights and averages (Ho et al. 2020, algorithm 1). Nothing in it waits for the device."""
        run, state, plan, objective = self.run, self.state, self.run.plan, self.run.objective
        compute = run.choice.compute
        lr = run.config.lr_scheduler.at(state.step, run.config.optimizer.lr, run.max_steps)
        for group, ratio in zip(self.optimizer.param_groups, self.lr_ratios, strict=True):
            group["lr"] = lr * ratio
        losses = []
        for micro_step in range(plan.accumulation):
            with self.within_memory(micro_step), self.exchange_gradients_after(plan.accumulation, micro_step):
                # Images, and all that is drawn for them, are functions of (seed, position) alone.
                images, noise, timesteps, input_noise, drawn = next(self.micro_batches)
                self.seed_dropout(micro_step)
                x_0 = to_model_range(images)  # uint8 [B, C, H, W] -> float32 in [-1, 1]
                x_0, labels = run.config.augmentation(x_0, drawn)
                with compute.autocast(x_0.device), compute.attention_kernels():
                    x_t = objective.noise_scheduler.add_noise(x_0, input_noise, timesteps)
                    prediction, uncertainty = self.model(x_t, timesteps, labels)
                    loss = objective(prediction, x_0, noise, timesteps)
                run.accelerator.backward(objective.balanced(loss, uncertainty, timesteps).mean() / plan.accumulation)
                losses.append(loss.detach().mean())
        max_norm = run.config.train.max_grad_norm or float("inf")
        grad_norm = run.accelerator.clip_grad_norm_(self.parameters, max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        for average, decay in self.averages:
            update_ema(average, self.unet_parameters, decay(state.step))
        self.records.record(state.step, state.step * plan.batch_size, lr, torch.stack(losses).mean(), grad_norm)

    def train_step_within_memory(self) -> None:
        """A training step, begun anew with smaller micro-batches until they fit: the other processes notice nothing."""
        while True:
            with suppress(MicroBatchTooLarge):
                return self.train_step()
            self.cut_micro_batches()  # the exception is gone, and with it the tensors of the step

    def exchange_gradients_after(self, accumulation: int, micro_step: int) -> AbstractContextManager[object]:
        """The processes exchange gradients once a step, while the last micro-batch goes backward."""
        last = micro_step == accumulation - 1
        return nullcontext() if last else self.run.accelerator.no_sync(self.model)

    def seed_dropout(self, micro_step: int) -> None:
        """Seed torch's generator, which dropout draws from, by the micro-batch, whichever process has it."""
        config = self.run.config
        if config.model.dropout:
            position = self.run.plan.start(self.state.step, micro_step)
            torch.manual_seed(derived_seed(config.seed, Purpose.DROPOUT, position))

    @contextmanager
    def within_memory(self, micro_step: int) -> Iterator[None]:
        """Raise `MicroBatchTooLarge` if memory runs out and `train.micro_batch_size=auto` may cut the micro-batch."""
        plan = self.run.plan
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            may_cut = self.run.config.train.micro_batch_size == "auto" and plan.micro_batch_size > 1
            # The other processes exchange the last micro-batch's gradients now, and would not begin it anew.
            exchanging = plan.num_processes > 1 and micro_step == plan.accumulation - 1
            if exchanging or not (may_cut and out_of_memory(error)):
                raise
            raise MicroBatchTooLarge from None

    def cut_micro_batches(self) -> None:
        """Begin the step anew with smaller micro-batches: other cuts, the same images, noise and order."""
        self.micro_batches.close()
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        torch.compiler.reset()  # of each network it compiles eight shapes, and refuses the ninth
        run = self.run
        run.plan = replace(run.plan, micro_batch_size=run.plan.micro_batch_sizes()[1])
        # Any process may come to this, not only the main one.
        print(
            f"out of memory: the run goes on with micro-batches of {run.plan.micro_batch_size}",
            file=sys.stderr,
            flush=True,
        )
        self.micro_batches = run.open_micro_batches()
