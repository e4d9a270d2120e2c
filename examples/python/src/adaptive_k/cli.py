"""The console script adaptive-k: the C++ program's commands on any MoE model of transformers.

    adaptive-k benchmark --model mixtral-8x7b --dataset wikitext-2
    adaptive-k calibrate --model ./my-model --dataset text.txt --target-savings 0.4 -o my-model.json

benchmark, calibrate, frontier and record run the program's own code with the model in Python: the same
options, table and JSON. Added here: --model takes a hub id or a preset's name too, --dataset, --text,
--test and --other-domain take wikitext-2 or a text (by the model's tokenizer), --dtype, --device-map, and
--html for a report. generate continues a text. presets, and every command on a --trace, need no model.
"""
from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from typing import Any, Optional, Sequence

WITH_MODEL = ("benchmark", "calibrate", "frontier", "record")
IN_CPP_ALONE = ("speed", "combine", "budget", "inspect", "matrix")
MISTAKE = 2


class Failure(Exception):
    """What is said on stderr before the exit with status 2."""


def _own_options(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"adaptive-k {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m")
    parser.add_argument("--dataset", "-d")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--test", action="append", default=[])
    parser.add_argument("--other-domain")
    parser.add_argument("--context", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device-map")
    parser.add_argument("--html")
    parser.add_argument("--json")
    return parser


def _help_of_own() -> None:
    print(
        "\nIn this package also:\n"
        "  --model ID            a hub id, a preset's name, or a folder that transformers loads\n"
        "  --dataset NAME        wikitext-2 (by the package datasets), a text file (by the model's\n"
        "                        tokenizer), or token ids (.json, .bin)\n"
        "  --dtype TYPE          float32, bfloat16, float16 (default: as the model is stored)\n"
        "  --device-map MAP      as transformers takes it, such as auto\n"
        "  --html FILE           benchmark, frontier: a report with plots, self-contained"
    )


def load_model(name: str, dtype: str = "auto", device_map: Optional[str] = None) -> tuple[Any, str, str]:
    """(model, what it was loaded from, its name) of a folder, a hub id or a preset's name."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise Failure(
            f"--model needs torch and transformers ({error}): pip install 'adaptive-k[transformers]'"
        ) from None
    from ._core import Preset, PresetError

    source, shown = name, name
    if pathlib.Path(name).is_dir():
        shown = pathlib.Path(name).resolve().name
    else:
        try:
            preset = Preset.load(name)
        except PresetError:
            pass
        else:
            ids = [alias for alias in preset.aliases if "/" in alias]
            if not ids:
                raise Failure(
                    f"--model: '{name}' is a preset without a hub id, expected the model's folder"
                )
            source, shown = next((i for i in ids if i.lower() == name.lower()), ids[0]), preset.name
    kind = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if kind is None:
        raise Failure(f"--dtype: '{dtype}', expected auto, float32, bfloat16 or float16")
    options = {} if device_map is None else {"device_map": device_map}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, **options)
    except (OSError, ValueError) as error:
        raise Failure(f"--model: {source}: {' '.join(str(error).split())[:600]}") from None
    return model.eval(), source, shown


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    folder = pathlib.Path(source)
    named = ("tokenizer*", "vocab*", "*.model", "spiece*", "*.tiktoken")
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in named):
        return None  # transformers would make an empty one
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception:  # whatever is wrong with it: the model reads token ids, or bytes
        return None


def _text_of(asked: str) -> tuple[str, str]:
    """(text, its name) of a data set that is no file of token ids."""
    if asked.lower() in ("wikitext-2", "wikitext2", "wikitext-2-raw-v1"):
        try:
            import datasets
        except ImportError:
            raise Failure(
                "--dataset wikitext-2 needs the package datasets: pip install datasets, or give a file"
            ) from None
        try:
            rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")
        except Exception as error:
            raise Failure(f"--dataset wikitext-2: {' '.join(str(error).split())[:400]}") from None
        return "\n\n".join(rows["text"]), "wikitext-2"
    path = pathlib.Path(asked)
    if not path.is_file():
        raise Failure(f"--dataset: '{asked}', expected wikitext-2, a text file, or token ids (.json, .bin)")
    return path.read_text(encoding="utf-8", errors="replace"), path.stem


def dataset_file(asked: str, engine: Any, tokenizer: Any, folder: pathlib.Path) -> str:
    """The file of token ids, or of bytes, that the program reads for a data set."""
    path = pathlib.Path(asked)
    if path.is_file() and (path.suffix in (".json", ".bin") or tokenizer is None):
        return asked  # a model of 256 tokens without a tokenizer reads bytes
    if tokenizer is None:
        raise Failure(
            f"--dataset: '{asked}', and the model has no tokenizer: give its token ids (.json, .bin)"
        )
    import numpy as np

    text, name = _text_of(asked)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    out = pathlib.Path(tempfile.mkdtemp(dir=folder)) / f"{name}.bin"  # several may have one name
    np.asarray(ids, "<i4").tofile(out)
    return str(out)


def _named(asked: str, takes_stem: bool) -> tuple[str, str]:
    """("NAME=", FILE) of NAME=FILE, by the program's rule; of a FILE alone its stem or no name."""
    name, equals, file = asked.partition("=")
    if equals and "/" not in name:
        return f"{name}=", file
    return (f"{pathlib.Path(asked).stem}=" if takes_stem else ""), asked


def stand_in(folder: pathlib.Path, source: str, engine: Any) -> pathlib.Path:
    """A folder that stands for the model where the program wants one: it says which model it is."""
    import json

    place = folder / (engine.name.replace("/", "--") or "model")
    place.mkdir()
    files = {}
    local = pathlib.Path(source)
    if local.is_dir():
        for file in sorted(local.iterdir()):
            if file.suffix in (".safetensors", ".json"):
                files[file.name] = [file.stat().st_size, file.stat().st_mtime_ns]
            if file.name.startswith("heldout_"):
                (place / file.name).symlink_to(file.resolve())
    # The program asks the architecture before it asks the engine, which here is transformers.
    config = {"model_type": "mixtral", "loaded_by": "transformers", "source": source, "files": files}
    (place / "config.json").write_text(json.dumps(config))
    return place


def run_program(arguments: Sequence[str], engine: Any = None) -> int:
    """The C++ program; `engine` is the model that it runs."""
    try:
        from . import _program
    except ImportError as error:
        raise Failure(f"this build of adaptive_k has no command line: {error}") from None
    own = str(pathlib.Path(__file__).parent / "calibrations")
    known = os.environ.get("ADAPTIVE_K_CALIBRATIONS", "")
    os.environ["ADAPTIVE_K_CALIBRATIONS"] = f"{known}{os.pathsep if known else ''}{own}"
    sys.stdout.flush()
    _program.set_engine(engine)
    try:
        return _program.main(["adaptive-k", *arguments])
    finally:
        _program.set_engine(None)
        os.environ["ADAPTIVE_K_CALIBRATIONS"] = known
        if not known:
            del os.environ["ADAPTIVE_K_CALIBRATIONS"]


def describe(engine: Any) -> str:
    """What is about to be run, and what it takes: before a long run."""
    model = engine.model
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    g = engine.gating
    return (
        f"{engine.name}: {parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB as "
        f"{engine.expert_dtype}; {engine.num_moe_layers} MoE layers of {g.num_experts} experts, of which "
        f"{g.top_k} a token"
    )


def estimate(engine: Any, context: int) -> str:
    """The time of a window under full K, measured on one."""
    import numpy as np

    from ._core import Policy
    from .router import Router

    router = Router(engine.gating, Policy.full())

    def route(layer, logits, ids, weights, counts, bias):
        router._core.route(layer, logits, ids, weights, counts, routing_bias=bias)

    tokens = np.zeros((1, context), np.int32)
    logits = np.empty((context, engine.vocab_size), np.float32)
    _, seconds = engine.forward(tokens, logits, route, None)
    return (
        f"a window of {context} tokens takes about {seconds:.2f} s under full K and "
        f"{logits.nbytes / 1e6:.0f} MB for its logits"
    )


def _say_sources(report: str, source: str, dataset: Optional[str]) -> None:
    """The report's paths are what was asked for, not the files that stood for it."""
    import json

    path = pathlib.Path(report)
    read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        return
    read.get("model", {})["path"] = source
    if dataset is not None:
        read.get("dataset", {})["path"] = dataset
    path.write_text(json.dumps(read, indent=2) + "\n", encoding="utf-8")


def with_model(command: str, arguments: Sequence[str]) -> int:
    from .integrations.evaluation import Engine
    from .integrations.gatings import UnsupportedModel

    own, rest = _own_options(command).parse_known_args(arguments)
    if own.model is None:
        raise Failure("--model: missing, expected a folder, a hub id or a preset's name")
    if own.html and command not in ("benchmark", "frontier"):
        raise Failure("--html: only benchmark and frontier write a report")
    model, source, shown = load_model(own.model, own.dtype, own.device_map)
    try:
        engine = Engine(model, name=shown)
    except UnsupportedModel as error:
        raise Failure(f"--model: {error}") from None
    tokenizer = _tokenizer(source)
    context = own.context or min(engine.max_positions, 2048)
    print(f"adaptive-k: {describe(engine)}", file=sys.stderr)
    if 2 <= context <= engine.max_positions:
        print(f"adaptive-k: {estimate(engine, context)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="adaptive-k-") as scratch:
        folder = pathlib.Path(scratch)
        passed = [command, "--model", str(stand_in(folder, source, engine)), "--context", str(context)]
        for option, asked in (("--dataset", own.dataset), ("--other-domain", own.other_domain)):
            if asked is not None:
                passed += [option, dataset_file(asked, engine, tokenizer, folder)]
        for option, texts in (("--text", own.text), ("--test", own.test)):
            for asked in texts:
                name, file = _named(asked, option == "--text" or len(texts) > 1)
                passed += [option, name + (file and dataset_file(file, engine, tokenizer, folder))]
        report = own.json
        if own.html and report in (None, "-"):
            if report == "-":
                raise Failure("--html with --json -: expected a file for one of them")
            report = str(folder / "report.json")
        if report is not None:
            passed += ["--json", report]
        status = run_program(passed + rest, engine)
        if status == 0 and report not in (None, "-"):
            _say_sources(report, source, own.dataset)
        if status == 0 and own.html:
            from .report import write_html

            write_html(report, own.html)
            print(f"report: {own.html}")
        return status


def generate(arguments: Sequence[str]) -> int:
    """Continues a text under a policy, and says what was saved."""
    parser = argparse.ArgumentParser(prog="adaptive-k generate", allow_abbrev=False)
    parser.add_argument("--model", "-m", required=True, help="a folder, a hub id or a preset's name")
    parser.add_argument("--prompt", required=True, help="the text to go on from")
    parser.add_argument("--policy", default="", help="as benchmark takes it (default: the preset's)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device-map")
    own = parser.parse_args(arguments)
    model, source, shown = load_model(own.model, own.dtype, own.device_map)
    import torch

    from ._core import Preset, PresetError
    from .integrations.gatings import UnsupportedModel
    from .known import AdaptiveKRouter

    try:
        router = AdaptiveKRouter.from_pretrained(shown, own.policy)
    except PresetError as error:
        if not own.policy or _is_preset(shown, Preset, PresetError):
            raise Failure(f"--policy: {error}") from None
        router = AdaptiveKRouter(policy=own.policy)
    tokenizer = _tokenizer(source)
    if tokenizer is not None:
        ids = tokenizer(own.prompt, return_tensors="pt")["input_ids"]
    elif model.config.get_text_config().vocab_size == 256:
        ids = torch.tensor([list(own.prompt.encode())])
    else:
        raise Failure(f"--model: {source} has no tokenizer: it reads token ids alone")
    if ids.shape[1] == 0:
        raise Failure("--prompt: no token, expected one or more")
    try:
        router.patch(model)
    except UnsupportedModel as error:
        raise Failure(f"--model: {error}") from None
    made = model.generate(
        ids.to(model.device), max_new_tokens=own.max_new_tokens, do_sample=False,
        attention_mask=torch.ones_like(ids).to(model.device),
    )[0]  # fmt: skip
    text = tokenizer.decode(made) if tokenizer else bytes(made.tolist()).decode(errors="replace")
    print(text)
    stats = router.stats
    print(
        f"saved {stats['average_savings']:.1%} of the expert calls, mean K {stats['mean_k']:.2f} of "
        f"{router.router.gating.top_k}",
        file=sys.stderr,
    )
    return 0


def _is_preset(name: str, preset: Any, error: Any) -> bool:
    try:
        preset.load(name)
    except error:
        return False
    return True


def dispatch(arguments: Sequence[str]) -> int:
    command = next((a for a in arguments if not a.startswith("-")), "")
    asks_for_help = any(a in ("-h", "--help") for a in arguments)
    rest = [a for a in arguments if a != command] if command else list(arguments)
    if command == "generate":
        return generate(rest)
    if command in IN_CPP_ALONE and "--trace" not in arguments and not asks_for_help:
        raise Failure(
            f"{command} runs in the C++ engine alone: build the program of bench/ (bench/run {command})"
        )
    if command in WITH_MODEL and not asks_for_help and not any(
        a == "--trace" or a.startswith("--trace=") for a in arguments
    ):
        return with_model(command, rest)
    status = run_program(arguments)
    if asks_for_help and command in WITH_MODEL:
        _help_of_own()
    return status


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Exit status 0, or 2 with one line on stderr that says what is wrong."""
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except Failure as error:
        print(f"adaptive-k: {error}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:
        return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
