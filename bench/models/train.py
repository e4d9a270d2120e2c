#!/usr/bin/env python3
"""Train one of the models of this folder from nothing on a CPU.

    python train.py olmoe-64x8 --work FOLDER

MODEL/config.json is the architecture and MODEL/training.json the training.  The learning rate warms up, stays,
and falls to nothing over the last part of the steps; ``steps`` may be changed as long as that has not begun.
Batches depend only on the seed and the step, so a run continues from its checkpoint in FOLDER/MODEL as if it
had not stopped.  Every worker process takes its share of each batch, and they average their gradients.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as processes  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel  # noqa: E402

import data  # noqa: E402
import experts  # noqa: E402
import texts  # noqa: E402
from optimiser import Optimiser  # noqa: E402

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", help="folder of config.json and training.json")
    p.add_argument("--work", type=Path, default=HERE / "data", help="folder of checkpoints and tokens")
    p.add_argument("--debs", type=Path, default=texts.DEBS, help="folder of the packages")
    p.add_argument("--workers", type=int, default=1, help="processes, each with its share of every batch")
    p.add_argument("--threads", type=int, default=1, help="threads of each process")
    p.add_argument("--until", type=int, default=math.inf, help="stop, with a checkpoint, after this many steps")
    p.add_argument("--save-minutes", type=float, default=5.0, help="time between checkpoints")
    p.add_argument("--no-compile", action="store_true", help="no torch.compile")
    return p.parse_args()


def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float,
              **_kwargs: object) -> tuple[Tensor, None]:
    """Causal attention of whole windows as transformers calls it, by products of bfloat16.

    q [B, heads, T, D], k and v [B, key heads, T, D] -> [B, T, heads, D]; no padding, so ``mask`` is not read.
    """
    length, groups = q.shape[-2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    factor, term = experts.factor, experts.term
    scores = factor(q * scaling) @ factor(k).mT
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    shares = term(scores).masked_fill(later, -torch.inf).softmax(-1)
    return term(factor(shares) @ factor(v)).transpose(1, 2).contiguous(), None


AttentionInterface.register("bfloat16_products", attention)


def average(x: Tensor) -> Tensor:
    """The workers' mean of x, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def routers(model: PreTrainedModel) -> list[nn.Module]:
    """The routers, in the order of their layers."""
    return [module for module in model.modules() if type(module).__name__.lower().endswith("topkrouter")]


def create(folder: Path, seed: int) -> PreTrainedModel:
    """A new model of the folder's config.json with this project's initial weights, float32."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.set_experts_implementation(experts.NAME)
    model.set_attn_implementation("bfloat16_products")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2:
                continue
            std = 0.1 if "embed" in name else 0.02 if "lm_head" in name else 0.5 * p.shape[-1] ** -0.5
            if "o_proj" in name or "down_proj" in name:
                std *= (2 * config.num_hidden_layers) ** -0.5
                if "experts" in name and not getattr(config, "norm_topk_prob", True):  # small weights at first
                    std *= (p.shape[0] / config.num_experts_per_tok) ** 0.5
            nn.init.normal_(p, 0.0, std, generator=generator)
    return model


class Run:
    """A training run: model, optimiser, step count and log."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        self.args, self.rank = args, rank
        self.folder, self.work = HERE / args.model, args.work / args.model
        self.settings = json.loads((self.folder / "training.json").read_text())
        self.training, self.validation = data.load(args.work, args.debs)
        self.model = create(self.folder, self.settings["seed"])
        self.routers = routers(self.model)
        self.cross_entropy = F.cross_entropy
        self.routed: list[tuple[Tensor, Tensor]] = []  # logits [T, E] and chosen [T, K] of each router
        self.optimiser = Optimiser(self.model, self.settings["weight_decay"])
        self.step, self.processor_seconds = 0, 0.0
        self.log, self.checkpoint = self.work / "training_log.jsonl", self.work / "checkpoint.pt"
        self.work.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.restore()

    def restore(self) -> None:
        """Continue from the checkpoint; the log loses what came after it."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.processor_seconds = state["step"], state["processor_seconds"]
        if self.rank == 0:
            lines = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            self.log.write_text("".join(line + "\n" for line in lines))

    def rate(self) -> float:
        """Learning rate of the next step, as a share of the highest."""
        steps, decay = self.settings["steps"], self.settings["decay_steps"]
        return min(1.0, (self.step + 1) / self.settings["warmup_steps"], (steps - self.step) / decay)

    def route(self, _module: nn.Module, _inputs: tuple, output: tuple) -> None:
        """Forward hook of a router."""
        self.routed.append((output[0], output[2]))

    def balance_loss(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Switch's load-balancing loss of one softmax router; K where balanced."""
        experts_count = logits.shape[-1]
        load = torch.bincount(chosen.flatten(), minlength=experts_count).float() / logits.shape[0]
        return experts_count * (load * torch.softmax(logits, -1).mean(0)).sum()

    @torch.no_grad()
    def balance_biases(self, scale: float) -> None:
        """Move the selection biases of sigmoid routers towards even loads, without a loss."""
        for router, (logits, chosen) in zip(self.routers, self.routed):
            load = average(torch.bincount(chosen.flatten(), minlength=logits.shape[-1]).float())
            router.e_score_correction_bias += scale * self.settings["bias_rate"] * torch.sign(load.mean() - load)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean nats a token of windows [B, WINDOW + 1]."""
        logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return self.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def train_step(self) -> float:
        """One optimiser step; the workers' mean loss."""
        tokens = data.batch(self.training, self.step, self.settings["seed"], self.settings["windows"])
        self.routed.clear()
        loss = self.loss(tokens[self.rank :: self.args.workers])
        total, scale = loss, self.rate()
        if self.settings["balance"]:
            balance = sum(self.balance_loss(*routed) for routed in self.routed) / len(self.routers)
            total = loss + self.settings["balance"] * balance
        total.backward()
        gradients = [p.grad for p in self.model.parameters()]
        flat = average(torch.cat([g.flatten() for g in gradients] + [loss.detach().view(1)]))
        norm = flat[:-1].norm()
        flat[:-1] *= torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients])):
            gradient.copy_(mean.view_as(gradient))
        self.optimiser.update(self.settings["rate"] * scale)
        self.model.zero_grad()
        if self.settings["bias_rate"]:
            self.balance_biases(scale)
        self.step += 1
        if not math.isfinite(flat[-1].item()):
            raise SystemExit(f"{self.args.model}: the loss of step {self.step} is not finite")
        return flat[-1].item()

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # its shapes are others
    def validate(self) -> tuple[dict[str, float], list[float]]:
        """Nats a token of each domain's validation text, and each layer's largest load over the mean."""
        losses, loads = {}, 0
        self.model.eval()
        for name, stream in self.validation.items():
            windows = data.windows_of(stream)[self.rank :: self.args.workers]
            total = torch.zeros(2, dtype=torch.float64)
            for part in windows.split(8):
                self.routed.clear()
                total[0] += self.loss(part).double() * part[:, 1:].numel()
                total[1] += part[:, 1:].numel()
                loads = loads + torch.stack([torch.bincount(chosen.flatten(), minlength=logits.shape[-1])
                                             for logits, chosen in self.routed]).double()
            average(total)
            losses[name] = round((total[0] / total[1]).item(), 4)
        self.model.train()
        loads = average(loads)
        return losses, [round(x, 2) for x in (loads.amax(1) / loads.mean(1)).tolist()]

    def save(self, train_loss: float) -> None:
        """Validate, log and write the checkpoint."""
        losses, loads = self.validate()
        if self.rank:
            return
        entry = {"step": self.step, "core_minutes": round(self.processor_seconds / 60, 1),
                 "train": round(train_loss, 4), "validation": losses, "largest_load": loads}
        with self.log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
                 "processor_seconds": self.processor_seconds}
        torch.save(state, self.checkpoint.with_suffix(".part"))
        os.replace(self.checkpoint.with_suffix(".part"), self.checkpoint)

    def train(self) -> None:
        """Train to the end of the steps."""
        for router in self.routers:
            router.register_forward_hook(self.route)
        if not self.args.no_compile:
            experts.Kernels.compile()
            self.cross_entropy = torch.compile(F.cross_entropy)
            for layer in self.model.model.layers:
                layer.compile()
        self.model.train()
        saved, used, losses = time.monotonic(), time.process_time(), []
        end = min(self.settings["steps"], self.args.until)
        while self.step < end:
            losses.append(self.train_step())
            if self.step % 10 and self.step < end:
                continue
            now = time.process_time()
            clocks = average(torch.tensor([time.monotonic() - saved, now - used], dtype=torch.float64))
            self.processor_seconds += clocks[1].item() * self.args.workers
            used = now
            if self.step >= end or clocks[0] > 60 * self.args.save_minutes:
                self.save(sum(losses) / len(losses))
                saved, losses = time.monotonic(), []
            elif self.rank == 0:
                minutes = self.processor_seconds / 60
                print(f"step {self.step} core minutes {minutes:.1f} loss {losses[-1]:.3f}", flush=True)


def work(rank: int, args: argparse.Namespace, store: str) -> None:
    """One worker process."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium")  # factors of bfloat16, sums of float32
    if args.workers > 1:
        patience = datetime.timedelta(days=7)  # a worker may be starved, or paused, for long
        dist.init_process_group("gloo", f"file://{store}", patience, args.workers, rank)
    Run(args, rank).train()


def main() -> None:
    """Start the workers."""
    args = arguments()
    data.load(args.work, args.debs)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        if args.workers == 1:
            work(0, args, store)
        else:
            processes.spawn(work, (args, store), nprocs=args.workers)


if __name__ == "__main__":
    main()
