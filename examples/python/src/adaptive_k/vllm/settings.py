"""What the plug-in is told: by --additional-config '{"adaptive_k": {...}}', or by ADAPTIVE_K_VLLM.

Every field is checked; nothing that is not known is ignored.
"""
from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Mapping, Optional

ENVIRONMENT = "ADAPTIVE_K_VLLM"
KEY = "adaptive_k"


class Refused(ValueError):
    """What keeps the engine from starting; one line, which names what was found and what was expected."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One policy that requests are given."""

    name: str
    policy: str = ""
    """A policy of the preset, or text as Policy.parse reads; '': the settings' own."""
    weight: float = 1.0
    """Its share of the requests, against the others' weights."""
    shadow: bool = False


@dataclasses.dataclass(frozen=True)
class ControllerSettings:
    """The savings controller: moves the policies so that `expert_savings` is held while inputs drift."""

    expert_savings: float
    decision_tokens: int = 65536
    """Tokens between two decisions, summed over layers."""
    hysteresis: float = 0.002
    gain: float = 6.0
    lowest_scale: float = 1.0 / 16.0
    highest_scale: float = 16.0
    state: str = ""
    """A file that keeps the state: written at each decision, read when the engine starts."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Off is not to give any. With a preset alone its default policy is taken."""

    preset: str = ""
    """Name, alias or path of a calibration file; checked against the model."""
    policy: str = ""
    """A policy of the preset, or text as Policy.parse reads: full, fixed:4, top_p:0.85, my.json."""
    shadow: bool = False
    """Route at full K, and count what the policy would have taken."""
    variants: tuple[Variant, ...] = ()
    """An A/B test: each request is given one of these by a stable hash of its id. The first is the control."""
    salt: int = 0
    """Of that hash."""
    overrides: bool = True
    """Requests may ask for something else by their extra args."""
    controller: Optional[ControllerSettings] = None
    model: str = ""
    """The label of metrics; '' for the preset's or the served model's name."""
    metrics: bool = True
    gating: Optional[Mapping[str, Any]] = None
    """Gating's arguments, for a custom routing function that is not known; checked like any."""
    allow_untested: bool = False
    """Start under a version or on a device that the plug-in was not tested with."""

    def fingerprint(self) -> str:
        """Equal settings, equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def _typed(where: str, value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is bool or not isinstance(value, bool):
        if isinstance(value, kind):
            return value
    names = {str: "a string", bool: "true or false", float: "a number", int: "an integer"}
    raise Refused(f"{where}: {value!r}, expected {names[kind]}")


def _read(cls: type, given: Any, where: str, special: Mapping[str, Any]) -> Any:
    if not isinstance(given, Mapping):
        raise Refused(f"{where}: {given!r}, expected an object")
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in known:
            raise Refused(f"{where}.{name}: not known, expected one of {', '.join(known)}")
    values = {}
    for name, value in given.items():
        if name in special:
            values[name] = special[name](value)
        else:
            kind = {"str": str, "bool": bool, "float": float, "int": int}[str(known[name].type)]
            values[name] = _typed(f"{where}.{name}", value, kind)
    for name, field in known.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise Refused(f"{where}.{name}: missing")
    return cls(**values)


def _variants(given: Any) -> tuple[Variant, ...]:
    if not isinstance(given, list) or len(given) < 2:
        raise Refused(f"{KEY}.variants: {given!r}, expected a list of two variants or more")
    made = tuple(_read(Variant, v, f"{KEY}.variants[{i}]", {}) for i, v in enumerate(given))
    for i, variant in enumerate(made):
        where = f"{KEY}.variants[{i}]"
        if not variant.name or variant.name in ("off", "on", "full"):
            raise Refused(f"{where}.name: {variant.name!r}, expected a name other than off, on, full")
        if variant.name in [other.name for other in made[:i]]:
            raise Refused(f"{where}.name: {variant.name!r} is taken, expected a name of its own")
        if not variant.weight > 0:
            raise Refused(f"{where}.weight: {variant.weight}, expected above 0")
    return made


def _gating(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise Refused(f"{KEY}.gating: {given!r}, expected an object: the arguments of Gating")
    return dict(given)


def read(given: Any) -> Settings:
    """Settings of a mapping. Raises Refused, which names the field."""
    settings = _read(
        Settings, given, KEY,
        {
            "variants": _variants,
            "gating": _gating,
            "controller": lambda c: _read(ControllerSettings, c, f"{KEY}.controller", {}),
        },
    )  # fmt: skip
    if not (settings.preset or settings.policy or settings.variants):
        raise Refused(f"{KEY}: neither preset nor policy nor variants, expected one of them")
    if settings.variants and (settings.policy or settings.shadow):
        raise Refused(f"{KEY}.variants: beside policy or shadow, expected those within the variants")
    for i, variant in enumerate(settings.variants):
        if not variant.policy and not settings.preset:
            raise Refused(f"{KEY}.variants[{i}].policy: missing, expected one, as there is no preset")
    return settings


def find(additional_config: Any) -> Optional[Settings]:
    """The settings of an engine: of its additional config, else of the environment; None where neither
    has any. Raises Refused."""
    if isinstance(additional_config, Mapping) and additional_config.get(KEY) is not None:
        return read(additional_config[KEY])
    text = os.environ.get(ENVIRONMENT, "").strip()
    if not text:
        return None
    if not text.startswith("{"):
        return read({"policy": text})
    try:
        return read(json.loads(text))
    except json.JSONDecodeError as error:
        raise Refused(f"{ENVIRONMENT}: {error}, expected JSON or the text of a policy") from None
