"""Calibration of a model of transformers, by the C++ calibrator: Calibrator and CalibrationResult."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from typing import Any, Iterator, Optional, Sequence

import numpy as np

from ._core import Policy, Preset

__all__ = ["CalibrationResult", "Calibrator"]


@dataclasses.dataclass
class CalibrationResult:
    """What a calibration found, measured on the half of the text that it was not fitted on."""

    optimal_thresholds: list
    """Of the rule that won: thresholds in the signal's unit, or the price of an expert (lambda) where
    the rule is the predicted distortion."""
    expected_savings: float
    """Share of the model's own expert calls, in [0, 1)."""
    quality_retention: float
    """Perplexity under full K over perplexity under the policy: 1 is no loss."""
    samples_analyzed: int
    """Tokens that were read."""
    rule: str
    """fixed, thresholds or distortion."""
    mean_k: float
    mean_kl: float
    """KL to full K, nats."""
    fixed_k_mean_kl: float
    """The control: that of fixed K at equal mean K on the same text."""
    preset: dict
    """The calibration file as JSON; `save` writes it, and every program here reads it."""

    def save(self, path: str) -> None:
        """Writes the calibration file (.json), which from_pretrained and the C++ library read."""
        pathlib.Path(path).write_text(json.dumps(self.preset, indent=1) + "\n", encoding="utf-8")

    def router(self) -> Any:
        """An AdaptiveKRouter with the policy that was found."""
        from .known import AdaptiveKRouter

        gating, policy = self._loaded()
        return AdaptiveKRouter(gating=gating, policy=policy, name=self.preset["name"])

    def _loaded(self) -> tuple[Any, Policy]:
        with tempfile.TemporaryDirectory() as folder:
            path = str(pathlib.Path(folder) / "found.json")
            self.save(path)
            preset = Preset.load(path)
            return preset.gating, preset.policy()


class Calibrator:
    """Finds a K policy for a model: savings to reach, as long as quality allows them.

    target_savings: share of expert calls, in (0, 1). quality_threshold: least share of quality kept,
    as perplexity under full K over the policy's; where the target costs more than that, the saving is
    what it allows. rule: 'auto' (the best of all), 'entropy' (the published one), 'top_p',
    'distortion', 'score_ratio', 'static_per_layer', 'fixed'. The published `k_values` are not asked
    for: which K's are used follows from the target.
    """

    def __init__(
        self,
        target_savings: float = 0.40,
        quality_threshold: float = 0.99,
        *,
        rule: str = "auto",
        tokens: int = 16384,
        context: int = 0,
        verbose: bool = False,
    ) -> None:
        if not 0 < target_savings < 1:
            raise ValueError(f"target_savings: {target_savings}, expected above 0 and below 1")
        if not 0 < quality_threshold < 1:
            raise ValueError(f"quality_threshold: {quality_threshold}, expected above 0 and below 1")
        self.target_savings = target_savings
        self.quality_threshold = quality_threshold
        self.rule = rule
        self.tokens = tokens
        self.context = context
        self.verbose = verbose

    def calibrate(self, model: Any, dataset: Any, *, tokenizer: Any = None) -> CalibrationResult:
        """Runs the model over `dataset`, with K really applied, and returns what was found.

        dataset: token ids (an array or tensor of any shape, or a file .json/.bin), text (a string, a
        list of strings, the path of a file), or rows with `input_ids` or `text`; text needs a
        tokenizer, by default the model's own. Half of it is calibrated on, half reported on. Raises
        ValueError: a text too short, a model that is not supported.
        """
        from .integrations.evaluation import Engine

        engine = Engine(model)
        most = 1 - 1 / engine.gating.top_k
        if self.target_savings > most + 1e-9:
            raise ValueError(
                f"target_savings: {self.target_savings}, expected at most {most:.4g}: one expert of "
                f"{engine.gating.top_k} a token saves no more"
            )
        ids = _token_ids(dataset, tokenizer, model)
        context = self.context or min(engine.max_positions, 512)
        target = ["--target-savings", repr(self.target_savings)]
        found, perplexity = self._run(engine, ids, context, target)
        full = _full_perplexity(engine, ids, context)
        limit = 1 / self.quality_threshold - 1
        if perplexity / full - 1 > limit:
            target = ["--max-ppl-increase", repr(limit)]
            found, perplexity = self._run(engine, ids, context, target)
        return _result(found, full / perplexity)

    def _run(
        self, engine: Any, ids: np.ndarray, context: int, target: Sequence[str]
    ) -> tuple[dict, float]:
        """The calibration file, and the policy's perplexity on the half that is reported on."""
        from . import cli

        with tempfile.TemporaryDirectory(prefix="adaptive-k-") as scratch:
            folder = pathlib.Path(scratch)
            data = folder / "calibration.bin"
            if engine.vocab_size == 256:  # the program reads its data as bytes
                data.write_bytes(ids.astype(np.uint8).tobytes())
            else:
                ids.astype("<i4").tofile(data)
            out, points = folder / "found.json", folder / "points.json"
            arguments = [
                "calibrate", "--model", str(cli.stand_in(folder, "", engine)), "--dataset", str(data),
                "--context", str(context), "--tokens", str(self.tokens), "--signal", self.rule,
                *target, "-o", str(out),
                "--json", str(points),
            ]  # fmt: skip
            with _stderr_kept() as said, _quiet(self.verbose):
                status = cli.run_program(arguments, engine)
            if status != 0:
                raise ValueError(said() or "the calibration failed")
            preset = json.loads(out.read_text(encoding="utf-8"))
            rows = json.loads(points.read_text(encoding="utf-8"))
            mean_k = _policy_of(preset)["measured"]["mean_k"]
            own = [row for row in rows if row["split"] == "test"]
            best = min(own, key=lambda row: (abs(row["mean_k"] - mean_k), row["mean_kl"]))
            return preset, best["perplexity"]


def _full_perplexity(engine: Any, ids: np.ndarray, context: int) -> float:
    """Under full K on the windows that a calibration reports on: the second half, 128 at most."""
    from ._core import Policy
    from .router import Router

    router = Router(engine.gating, Policy.full())

    def route(layer: int, logits: Any, chosen: Any, weights: Any, counts: Any, bias: Any) -> None:
        router._core.route(layer, logits, chosen, weights, counts, routing_bias=bias)

    windows = ids[: len(ids) // context * context].reshape(-1, context).astype(np.int32)
    half = len(windows) // 2
    loss, number = 0.0, 0
    for window in windows[half : half + 128]:
        logits = np.empty((context, engine.vocab_size), np.float32)
        engine.forward(window[None], logits, route, None)
        x = logits[:-1].astype(np.float64)
        x -= x.max(1, keepdims=True)
        picked = x[np.arange(context - 1), window[1:]]
        loss += float((np.log(np.exp(x).sum(1)) - picked).sum())
        number += context - 1
    return float(np.exp(loss / number))


def _token_ids(dataset: Any, tokenizer: Any, model: Any) -> np.ndarray:
    if isinstance(dataset, (str, os.PathLike)) and pathlib.Path(dataset).is_file():
        path = pathlib.Path(dataset)
        if path.suffix == ".json":
            return np.asarray(json.loads(path.read_text(encoding="utf-8")), np.int64)
        if path.suffix == ".bin":
            return np.fromfile(path, "<i4").astype(np.int64)
        dataset = path.read_text(encoding="utf-8")
    if isinstance(dataset, str):
        dataset = [dataset]
    if hasattr(dataset, "detach"):
        dataset = dataset.detach().cpu().numpy()
    if isinstance(dataset, np.ndarray):
        return dataset.reshape(-1).astype(np.int64)
    pieces = []
    for row in dataset:
        if isinstance(row, dict):
            row = row["input_ids"] if "input_ids" in row else row.get("text", row)
        if isinstance(row, str):
            pieces.append(_encode(row, tokenizer, model))
        else:
            row = row.detach().cpu().numpy() if hasattr(row, "detach") else row
            pieces.append(np.asarray(row, np.int64).reshape(-1))
    if not pieces:
        raise ValueError("dataset: empty, expected token ids or text")
    return np.concatenate(pieces)


def _encode(text: str, tokenizer: Any, model: Any) -> np.ndarray:
    if tokenizer is None:
        from .cli import _tokenizer

        source = str(getattr(model.config, "_name_or_path", ""))
        tokenizer = _tokenizer(source) if source else None
    if tokenizer is not None:
        return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
    if model.config.get_text_config().vocab_size == 256:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    raise ValueError("dataset: text, and the model has no tokenizer: give tokenizer=, or token ids")


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Without the program's table on stdout."""
    if verbose:
        yield
        return
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Any]:
    """What the program said on stderr, its progress left out, for the exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
            told = [line for line in lines if line.startswith("adaptive-k: ")]
            return told[-1][len("adaptive-k: ") :] if told else ""

        text: list[str] = []
        try:
            yield lambda: text[0] if text else said()
            text.append(said())
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _policy_of(preset: dict) -> dict:
    return next(p for p in preset["policies"] if p["name"] == preset["default_policy"])


def _result(preset: dict, retention: float) -> CalibrationResult:
    policy = _policy_of(preset)
    measured = policy["measured"]
    first = {**policy, **(policy["layers"][0] if policy.get("layers") else {})}
    thresholds: Optional[Any] = first.get("thresholds_nats", first.get("thresholds"))
    if thresholds is None and first["rule"] == "distortion":
        thresholds = [first.get("distortion", {}).get("lambda")]
    return CalibrationResult(
        optimal_thresholds=list(thresholds or []),
        expected_savings=measured["expert_savings"],
        quality_retention=retention,
        samples_analyzed=measured["tokens"],
        rule=first["rule"],
        mean_k=measured["mean_k"],
        mean_kl=measured["mean_kl"],
        fixed_k_mean_kl=measured["fixed_k_mean_kl"],
        preset=preset,
    )
