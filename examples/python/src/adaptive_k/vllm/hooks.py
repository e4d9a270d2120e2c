"""Where the plug-in takes hold of vLLM: three methods, which ask for the settings when an engine starts."""
from __future__ import annotations

import functools
from typing import Any

from .settings import KEY, find

_installed = False


def install() -> None:
    """Idempotent. Imports vLLM's worker, front end and engine core, whichever process this is."""
    global _installed
    if _installed:
        return
    _installed = True
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    _after(WorkerWrapperBase, "init_device", _worker_is_ready)
    _after(InputProcessor, "__init__", _front_end_is_ready)
    _before_first(EngineCore, "preprocess_add_request", _core_is_ready)


def _after(owner: type, name: str, then: Any) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self)
        return result

    setattr(owner, name, method)


def _before_first(owner: type, name: str, then: Any) -> None:
    """At an object's first call, which `then` may replace; a core may be made while plug-ins load."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self, name, functools.partial(original, self))
        then(self)
        return getattr(self, name)(*args, **kwargs)

    setattr(owner, name, method)


def _worker_is_ready(wrapper: Any) -> None:
    """The worker has its device and not yet its model."""
    worker = wrapper.worker
    config = worker.vllm_config
    settings = find(config.additional_config)
    if settings is None:
        return
    from . import start

    load = worker.load_model

    @functools.wraps(load)
    def load_model(*args: Any, **kwargs: Any) -> Any:
        result = load(*args, **kwargs)
        start.attach(worker, settings)
        return result

    worker.load_model = load_model
    if isinstance(config.additional_config, dict):
        # What is compiled depends on it, and vLLM's cache of compiled graphs is keyed by this.
        config.additional_config[f"{KEY}_fingerprint"] = settings.fingerprint()


def _front_end_is_ready(processor: Any) -> None:
    settings = find(processor.vllm_config.additional_config)
    if settings is None:
        return
    from . import requests

    requests.attach_front_end(processor, settings)


def _core_is_ready(core: Any) -> None:
    settings = find(core.vllm_config.additional_config)
    if settings is None:
        return
    from . import requests

    requests.attach_core(core, settings)
