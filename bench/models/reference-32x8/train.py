#!/usr/bin/env python3
"""Train the byte-level reference model from nothing on a CPU.

    python train.py --deb r-cran-janeaustenr_1.0.0-1_all.deb --minutes 60 --workers 2

The learning rate falls along a cosine whose progress is the share of ``--steps`` done or, with
``--minutes``, of the minutes used.  Progress is sampled at the start of every block of 20 steps and
logged, so that ``--replay training_log.jsonl`` repeats a timed run's schedule step for step.
Batches depend only on the seed and the step.  Every worker process takes its share of each batch and
they average their gradients once a step, which loses little on a busy machine.  A run continues
from its checkpoint when there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as processes  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

import corpus  # noqa: E402
from model import Config, Model, window_loss  # noqa: E402

BLOCK = 20
HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--deb", type=Path, default=HERE / "data" / corpus.DEB_NAME, help="package; fetched when absent")
    p.add_argument("--out", type=Path, default=HERE, help="folder for model.safetensors, config.json and the log")
    p.add_argument("--checkpoint", type=Path, default=HERE / "data" / "checkpoint.pt")
    budget = p.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="optimiser steps")
    budget.add_argument("--minutes", type=float, help="wall-clock budget, earlier runs of a continued one included")
    budget.add_argument("--replay", type=Path, help="a training_log.jsonl whose schedule to repeat")
    p.add_argument("--batch", type=int, default=16, help="sequences a step")
    p.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    p.add_argument("--last-rate", type=float, default=3e-5, help="learning rate at the end")
    p.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up")
    p.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices")
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=2, help="processes, each with its share of every batch")
    p.add_argument("--threads", type=int, default=1, help="threads of each process")
    p.add_argument("--float32", action="store_true", help="no bfloat16 products")
    p.add_argument("--no-compile", action="store_true", help="no torch.compile")
    p.add_argument("--save-minutes", type=float, default=5.0, help="time between validations, checkpoints and exports")
    return p.parse_args()


def tensor(text: bytes) -> Tensor:
    """Text as a uint8 tensor [N]."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def average(x: Tensor) -> Tensor:
    """The workers' mean of x, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def average_gradients(model: Model) -> None:
    """Replace every gradient by the workers' mean."""
    gradients = [p.grad for p in model.parameters()]
    flat = average(torch.cat([g.flatten() for g in gradients]))
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def batch(data: Tensor, step: int, args: argparse.Namespace, length: int) -> Tensor:
    """Random windows [B, length + 1] (int64) of data [N], a function of the seed and the step."""
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    starts = torch.randint(0, len(data) - length, (args.batch,), generator=generator)
    return torch.stack([data[i : i + length + 1] for i in starts.tolist()]).long()


def optimiser(model: Model, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": args.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


class Schedule:
    """Progress, in 0..1, at the start of every block of steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.recorded = args, {}
        if args.replay:
            entries = [json.loads(line) for line in args.replay.read_text().splitlines()]
            self.recorded = {e["step"]: e["progress"] for e in entries if "progress" in e}

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget used before ``step``; 1 ends the run."""
        if self.recorded:
            return self.recorded.get(step, 1.0)
        if self.args.steps:
            return min(1.0, step / self.args.steps)
        return min(1.0, seconds / (60 * self.args.minutes))

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then a cosine."""
        low, high = self.args.last_rate, self.args.rate
        cosine = low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
        return cosine * min(1.0, (step + 1) / self.args.warmup)


def export(model: Model, folder: Path) -> None:
    """Write model.safetensors (float16) and config.json, each replaced in one move."""
    state = {name: w.half() for name, w in model.export().items()}
    save_file(state, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "model.safetensors.part").chmod(0o644)
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
    (folder / "config.json.part").write_text(json.dumps(model.config.huggingface("float16"), indent=2) + "\n")
    os.replace(folder / "config.json.part", folder / "config.json")


class Run:
    """A training run: model, optimiser, step count, time used and the best validation loss."""

    def __init__(self, args: argparse.Namespace, texts: dict[str, bytes], rank: int) -> None:
        self.args, self.rank, self.schedule = args, rank, Schedule(args)
        self.data, self.validation = tensor(texts["train.txt"]), tensor(texts["validation.txt"])[: 256 * 256]
        self.model = Model(Config(), args.dropout)
        self.model.initialise(torch.Generator().manual_seed(args.seed))
        self.optimiser = optimiser(self.model, args)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.log = args.out / "training_log.jsonl"
        if args.checkpoint.exists():
            self.restore()
        elif not args.replay and rank == 0:
            self.log.write_text("")
        torch.manual_seed(args.seed + self.step + 1000 * rank)

    def restore(self) -> None:
        """Continue from the checkpoint; the log loses what came after it."""
        saved = torch.load(self.args.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        for group, decay in zip(self.optimiser.param_groups, (self.args.decay, 0.0)):
            group["weight_decay"] = decay
        self.step, self.seconds, self.best = saved["step"], saved["seconds"], saved["best"]
        if self.args.replay or self.rank:
            return
        lines = [s for s in self.log.read_text().splitlines() if json.loads(s)["step"] < self.step]
        self.log.write_text("".join(s + "\n" for s in lines))

    def record(self, entry: dict) -> None:
        """Append a line to the log."""
        if not self.args.replay and self.rank == 0:
            with self.log.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def save(self, train_loss: float) -> None:
        """Validate, log, write the checkpoint and, when the validation loss is the lowest yet, export."""
        context, workers = self.model.config.context, self.args.workers
        share = self.validation.view(-1, context)[self.rank :: workers].flatten()
        loss = average(torch.tensor(window_loss(self.model, share, context)[0], dtype=torch.float64)).item()
        train_loss = average(torch.tensor(train_loss)).item()
        if self.rank:
            return
        if loss < self.best:
            self.best = loss
            export(self.model, self.args.out)
        tokens = self.step * self.args.batch * context
        self.record({"step": self.step - 1, "tokens": tokens, "minutes": round(self.seconds / 60, 2),
                     "train": round(train_loss, 4), "validation": round(loss, 4)})
        tqdm.write(f"step {self.step} minutes {self.seconds / 60:.1f} train {train_loss:.4f} validation {loss:.4f}")
        part = self.args.checkpoint.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(state | {"step": self.step, "seconds": self.seconds, "best": self.best}, part)
        os.replace(part, self.args.checkpoint)

    def train_step(self, rate: float) -> Tensor:
        """One optimiser step at ``rate``; the loss in nats a byte, [] float32."""
        tokens = batch(self.data, self.step, self.args, self.model.config.context)
        tokens = tokens[self.rank :: self.args.workers]
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=not self.args.float32):
            loss, balance = self.model(tokens[:, :-1], tokens[:, 1:])
            (loss + self.args.balance * balance).backward()
        average_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    def train(self) -> None:
        """Train to the end of the budget."""
        self.model.train()
        saved, start, losses = self.seconds, time.monotonic() - self.seconds, []
        bar = tqdm(initial=self.step, total=self.args.steps, unit="step", mininterval=10, disable=self.rank > 0)
        while (progress := round(self.schedule.progress(self.step, self.seconds), 6)) < 1.0:
            self.record({"step": self.step, "progress": progress})
            for _ in range(BLOCK):
                losses.append(self.train_step(self.schedule.rate(self.step, progress)))
                self.step += 1
            self.seconds = average(torch.tensor(time.monotonic() - start, dtype=torch.float64)).item()
            bar.update(BLOCK)
            bar.set_postfix(train=f"{torch.stack(losses[-BLOCK:]).mean():.3f}", minutes=f"{self.seconds / 60:.1f}")
            if self.seconds - saved > 60 * self.args.save_minutes:
                self.save(torch.stack(losses).mean().item())
                saved, losses = self.seconds, []
        self.save(torch.stack(losses).mean().item() if losses else math.nan)
        bar.close()


def work(rank: int, args: argparse.Namespace, store: str) -> None:
    """One worker process: train, then print the size of the run."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.workers)
    run = Run(args, corpus.load(args.deb), rank)
    if not args.no_compile:
        run.model.compile()
    run.train()
    if rank == 0:
        tokens = run.step * args.batch * run.model.config.context
        print(f"steps {run.step}, tokens {tokens}, minutes {run.seconds / 60:.1f}, best validation {run.best:.4f}")


def main() -> None:
    """Start the workers."""
    args = arguments()
    if args.batch % args.workers:
        raise SystemExit("--batch must be a multiple of --workers")
    corpus.find_deb(args.deb)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        if args.workers == 1:
            work(0, args, store)
        else:
            processes.spawn(work, (args, store), nprocs=args.workers)


if __name__ == "__main__":
    main()
