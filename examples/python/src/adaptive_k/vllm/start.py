"""What happens once a worker has loaded its model: everything is checked, then the MoE layers are given
their routing. What does not pass keeps the engine from starting, in one line.
"""
from __future__ import annotations

import functools
import logging
import os
from typing import Any, Optional

import torch

from .._core import Gating, Policy, Preset, PresetError, __version__
from ..integrations.gatings import gating_differs
from ..integrations.probe import routing_differs
from ..router import Router
from . import experts as experts_module
from . import routing
from .requests import FULL
from .service import Service
from .settings import Refused, Settings
from .steps import Steps

TESTED_VERSIONS = ("0.32.0",)

logger = logging.getLogger("vllm.adaptive_k")


def attach(worker: Any, settings: Settings) -> Service:
    """Checks and replaces; the worker then has `adaptive_k`, its Service. Raises Refused."""
    try:
        return _attach(worker, settings)
    except (ValueError, PresetError) as error:
        # Once in words, whatever the engine makes of a worker that does not start.
        logger.error("adaptive_k refuses to start: %s", error)
        raise Refused(f"adaptive_k: {error}") from None


def _attach(worker: Any, settings: Settings) -> Service:
    config, runner = worker.vllm_config, worker.model_runner
    _check_engine(config, runner, settings)
    layers = _moe_layers(runner.get_model())
    preset = Preset.load(settings.preset) if settings.preset else None
    gatings = [_gating_of(name, layer, settings, preset) for name, layer in layers]
    gating = gatings[0]
    for (name, _), other in zip(layers, gatings):
        if repr(other) != repr(gating):
            raise Refused(f"{name}: {other!r}, unlike the first MoE layer's {gating!r}")
    arms = _arms(settings, preset, gating, len(layers))
    _try(arms, gating, layers)
    steps = Steps([arm.name for arm in arms], gating.top_k)
    made = [routing.Layer(i, arms, steps) for i in range(len(layers))]
    skipping = [_prepare_experts(name, layer) for name, layer in layers]
    routing.set_layers(made)
    for i, (_, layer) in enumerate(layers):
        layer.router.__class__ = routing.subclass_of(type(layer.router))
        layer.router.adaptive_k_layer = i
    model = settings.model or (preset.name if preset else "") or _model_name(config)
    service = Service(settings, model, arms, made, steps, worker.rank == 0)
    _follow_steps(runner, service)
    worker.adaptive_k = service
    worker.adaptive_k_metrics = service.snapshot
    worker.adaptive_k_reset = service.reset
    if worker.rank == 0:
        _tell(layers, gating, arms, skipping, settings)
    return service


def _model_name(config: Any) -> str:
    served = config.model_config.served_model_name
    name = served[0] if isinstance(served, list) else served
    return os.path.basename(str(name or config.model_config.model).rstrip("/"))


def _check_engine(config: Any, runner: Any, settings: Settings) -> None:
    from vllm import __version__ as vllm_version
    from vllm.platforms import current_platform

    release = vllm_version.split("+")[0]
    if release not in TESTED_VERSIONS and not settings.allow_untested:
        raise Refused(
            f"vLLM {vllm_version} was not tested, expected {', '.join(TESTED_VERSIONS)}; "
            '"allow_untested": true starts all the same'
        )
    if not current_platform.is_cpu():
        if not settings.allow_untested:
            raise Refused(
                f"the platform is {current_platform.device_name}, and the plug-in was run on CPU alone; "
                '"allow_untested": true starts all the same'
            )
        if not config.model_config.enforce_eager:
            raise Refused(
                f"the platform is {current_platform.device_name}, where each layer's decision waits for the "
                "device: expected --enforce-eager, as a captured graph would keep its first decision"
            )
    parallel = config.parallel_config
    for field in ("pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, field, 1) != 1:
            raise Refused(f"{field} is {getattr(parallel, field)}, expected 1")
    if getattr(parallel, "enable_dbo", False):
        raise Refused("enable_dbo is true, expected false: a step's tokens must stay together")
    if getattr(parallel, "enable_eplb", False):
        raise Refused("enable_eplb is true, expected false: it would count dead slots as load")
    if not hasattr(runner, "_prepare_inputs"):
        raise Refused(f"{type(runner).__module__} runs the model, expected VLLM_USE_V2_MODEL_RUNNER=0")


def _moe_layers(model: Any) -> list[tuple[str, Any]]:
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, MoERunner)]
    if not found:
        raise Refused(f"{type(model).__name__} has no MoE layer that this version knows")
    for name, layer in found:
        if layer.routed_experts.quant_method.is_monolithic:
            raise Refused(
                f"{name}: {type(_experts_of(layer)).__name__} routes inside its kernel, expected modular "
                "experts: choose others by --kernel-config '{\"moe_backend\": ...}'"
            )
    return found


def _experts_of(layer: Any) -> Any:
    method = layer.routed_experts.quant_method
    kernel = getattr(method, "moe_kernel", None)
    return method if kernel is None else kernel.fused_experts


def _gating_of(name: str, layer: Any, settings: Settings, preset: Optional[Preset]) -> Gating:
    """The layer's own, checked on random logits against what its router chooses."""
    router = layer.router
    where = f"{name}: "
    try:
        own = routing.gating_of(router, None if settings.gating is None else dict(settings.gating))
    except ValueError as error:
        raise Refused(where + str(error)) from None
    if preset is not None:
        own = _as_preset(where, own, layer.routed_scaling_factor, preset)
    with torch.inference_mode():
        for dtype in {torch.float32, layer.moe_config.in_dtype}:
            made = torch.Generator().manual_seed(20241130)
            logits = torch.randn(32, own.num_experts, generator=made).mul_(2).to(dtype)
            bias = getattr(router, "e_score_correction_bias", None)
            device = "cpu" if bias is None else bias.device
            hidden = torch.zeros(32, layer.moe_config.hidden_dim, dtype=layer.moe_config.in_dtype)
            weights, ids = router._compute_routing(hidden.to(device), logits.to(device), None)
            # In half precision vLLM's weights are off by percents (its CPU router takes logsumexp in the
            # logits' type): there the choice is compared.
            exact = weights if dtype == torch.float32 else None
            if differs := routing_differs(own, logits, ids, exact, bias):
                raise Refused(f"{where}{type(router).__name__} {differs}")
    return own


def _as_preset(where: str, own: Gating, scale_of_output: float, preset: Preset) -> Gating:
    """The preset's gating, at the router's own scale: vLLM may apply the model's to the layer's output.
    A softmax that is renormalised is one over the selected; the preset says which its signals are of."""
    fields = ("n_group", "topk_group", "group_rank", "selection_bias", "renormalize", "jitter_epsilon")
    theirs = preset.gating
    kind, renormalize = own.kind, own.renormalize
    if theirs.kind == "top_k_softmax" and own.kind == "softmax" and own.renormalize:
        kind, renormalize = theirs.kind, theirs.renormalize
    given = {field: getattr(own, field) for field in fields}
    given.update(kind=kind, renormalize=renormalize)
    scale = own.routed_scaling_factor
    whole = Gating(own.num_experts, own.top_k, routed_scaling_factor=scale * scale_of_output, **given)
    if differs := gating_differs(theirs, whole):
        raise Refused(f"{where}the preset '{preset.name}' is made for another model: its {differs}")
    return Gating(own.num_experts, own.top_k, routed_scaling_factor=scale, **given)


def _arms(
    settings: Settings, preset: Optional[Preset], gating: Gating, num_layers: int
) -> list[routing.Arm]:
    """The variants in their order, and full K where requests may ask for it."""

    def made(name: str, label: str, spec: str, shadow: bool) -> routing.Arm:
        if preset is not None:
            policy = preset.policy(spec)
            label = label or spec or preset.default_policy or policy.name
        else:
            policy = Policy.parse(spec, gating, num_layers)
            label = label or (policy.name if spec.endswith(".json") else spec)
        if policy.num_layers not in (0, num_layers):
            raise Refused(
                f"policy '{policy.name}' is for {policy.num_layers} MoE layers, and the model has {num_layers}"
            )
        return routing.Arm(name, label, policy, shadow, Router(gating, policy))

    if settings.variants:
        arms = [made(v.name, v.name, v.policy or settings.policy, v.shadow) for v in settings.variants]
    else:
        arms = [made("on", "", settings.policy, settings.shadow)]
    if settings.overrides:
        full = Policy.full()
        arms.append(routing.Arm(FULL, "full", full, False, Router(gating, full), controlled=False))
    return arms


def _try(arms: list[routing.Arm], gating: Gating, layers: Any) -> None:
    """A token through every policy of every layer: what a call would refuse is refused now."""
    logits = torch.zeros(1, gating.num_experts)
    ids = torch.arange(gating.top_k, dtype=torch.int32).unsqueeze(0)
    bias = torch.zeros(gating.num_experts) if gating.selection_bias else None
    for arm in arms:
        for i, (name, _) in enumerate(layers):
            try:
                arm.router.keep(logits, ids, layer=i, routing_bias=bias)
            except ValueError as error:
                raise Refused(f"{name}: the policy '{arm.label}' cannot be run here: {error}") from None


def _prepare_experts(name: str, layer: Any) -> bool:
    """Whether the layer's experts skip: by the table, and where none is split over processes."""
    from vllm import __version__ as vllm_version

    if layer.routed_experts.expert_map is not None:
        return False  # they find experts of other processes by the map, which the row does not know
    own = _experts_of(layer)
    row = experts_module.row_of(type(own).__name__, vllm_version)
    if row is None or not row.skips:
        return False
    try:
        experts_module.make_skip(own)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None
    return True


def _follow_steps(runner: Any, service: Service) -> None:
    """Within execute_model the runner says which requests' tokens come, in which order."""
    execute, prepare = runner.execute_model, runner._prepare_inputs

    @functools.wraps(execute)
    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        new = [
            (request.req_id, None if request.sampling_params is None else request.sampling_params.extra_args)
            for request in scheduler_output.scheduled_new_reqs
        ]
        with service.step(new, scheduler_output.finished_req_ids):
            return execute(scheduler_output, *args, **kwargs)

    @functools.wraps(prepare)
    def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = prepare(scheduler_output, num_scheduled_tokens)
        requests = runner.input_batch.req_ids  # the batch may have been put into another order
        scheduled = scheduler_output.num_scheduled_tokens
        service.steps.begin(requests, [scheduled[request] for request in requests])
        return result

    runner.execute_model = execute_model
    runner._prepare_inputs = _prepare_inputs


def _tell(layers: Any, gating: Gating, arms: Any, skipping: Any, settings: Settings) -> None:
    own = type(_experts_of(layers[0][1])).__name__.removeprefix("AdaptiveK")
    told = ", ".join(f"{arm.label}{' (shadow)' if arm.shadow else ''}" for arm in arms)
    how = (
        "experts that a token does not keep are skipped"
        if all(skipping)
        else f"experts that a token does not keep are computed with weight 0: no row of the table is for {own}"
        + ("" if layers[0][1].routed_experts.expert_map is None else " split over processes")
    )
    if settings.metrics and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        how += "; metrics stay in the worker, as PROMETHEUS_MULTIPROC_DIR is not set"
    logger.info(
        "adaptive_k %s: %d MoE layers, %r; %s; %s", __version__, len(layers), gating, told, how
    )
