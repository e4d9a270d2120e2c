"""What one request is routed by: its variant in an A/B test, and what it asks for by its extra args.

    {"model": "...", "prompt": "...", "vllm_xargs": {"adaptive_k": "off"}}        # full K
    {"model": "...", "prompt": "...", "vllm_xargs": {"adaptive_k_k_max": 4}}      # 4 experts a token at most

The front end checks, so that a wrong value is the client's error; the engine core decides, so that it holds
for every front end. KV that was computed under one policy is not taken for another: requests that are not
routed alike get another salt of the prefix cache.
"""
from __future__ import annotations

import hashlib
from typing import Any, Mapping, Optional

from .settings import KEY, Settings
from .steps import K_MAX, VARIANT

FULL = "off"
"""The variant of requests that ask for full K."""


class Chooser:
    """Decides by a request's id and extra args. The same in every process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = [v.name for v in settings.variants] or ["on"]
        self.shadow = {v.name: v.shadow for v in settings.variants} or {"on": settings.shadow}
        self.shadow[FULL] = False
        self.test: Optional[Any] = None
        if settings.variants:
            from ..ab_test import ABTest, Variant  # says what is missing where it was not built

            self.test = ABTest(
                [Variant(v.name, v.weight, v.shadow) for v in settings.variants], salt=settings.salt
            )

    def check(self, extra_args: Optional[Mapping[str, Any]]) -> None:
        """Raises ValueError, which names the arg, its value and what was expected."""
        given = extra_args or {}
        name, k_max = given.get(VARIANT), given.get(K_MAX)
        if name is None and k_max is None:
            return
        if not self.settings.overrides:
            raise ValueError(
                f"{VARIANT if name is not None else K_MAX}: given by a request, and adaptive_k.overrides is false"
            )
        allowed = [FULL] + (self.names if self.test else ["on"])
        if name is not None and name not in allowed:
            raise ValueError(f"{VARIANT}: {name!r}, expected one of {', '.join(allowed)}")
        if k_max is not None and (isinstance(k_max, bool) or not isinstance(k_max, int) or k_max < 1):
            raise ValueError(f"{K_MAX}: {k_max!r}, expected an integer of 1 or more")
        if k_max is not None and any(self.shadow[n] for n in self.names):
            raise ValueError(f"{K_MAX}: {k_max}, and in shadow mode every token runs the model's own top-k")

    def resolve(self, request_id: str, extra_args: Optional[Mapping[str, Any]]) -> dict[str, Any]:
        """The extra args with the variant that the request is given."""
        given = dict(extra_args or {})
        if VARIANT not in given:
            given[VARIANT] = self.test.assign_variant(request_id) if self.test else self.names[0]
        return given

    def salt(self, extra_args: Mapping[str, Any]) -> str:
        """'' where full K runs; else what tells KV of this routing from others'."""
        name, k_max = extra_args[VARIANT], extra_args.get(K_MAX, 0)
        if (name == FULL or self.shadow[name]) and not k_max:
            return ""
        told = f"{self.settings.fingerprint()}|{name}|{k_max}"
        return f"{KEY}:{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def attach_front_end(processor: Any, settings: Settings) -> None:
    """Requests with wrong extra args are refused before they are sent to the engine."""
    from vllm.exceptions import VLLMValidationError

    chooser = Chooser(settings)
    process = processor.process_inputs

    def process_inputs(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            chooser.check(getattr(params, "extra_args", None))
        except ValueError as error:
            raise VLLMValidationError(str(error)) from None  # the server answers it by status 400
        return process(request_id, prompt, params, *args, **kwargs)

    processor.process_inputs = process_inputs


def attach_core(core: Any, settings: Settings) -> None:
    """Every request that the core takes gets its variant, and its salt."""
    chooser = Chooser(settings)
    preprocess = core.preprocess_add_request

    def preprocess_add_request(request: Any) -> Any:
        params = request.sampling_params
        if params is not None:
            try:
                chooser.check(params.extra_args)
                given = chooser.resolve(request.external_req_id or request.request_id, params.extra_args)
            except ValueError:  # a front end that did not check: nothing is lost at full K
                given = {VARIANT: chooser.names[0] if not settings.overrides else FULL}
            params.extra_args = given
            salt = chooser.salt(given)
            if salt:
                request.cache_salt = f"{request.cache_salt or ''}|{salt}"
        return preprocess(request)

    core.preprocess_add_request = preprocess_add_request
