"""A property with its options, as it is claimed and written. Nothing of it needs a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_induction.errors import ArgumentError
from pytest_induction.probes.sequences import ProbeSequence
from pytest_induction.properties.ready import PROPERTIES

Example = ProbeSequence | tuple[ProbeSequence, ...]
Property = Callable[..., Any]


@dataclass(frozen=True)
class PropertyClaim:
    """A property with its options: a ready one, or a function of the user's."""

    name: str
    function: Property
    options: Mapping[str, Any]

    @classmethod
    def of(cls, given: str | Property, options: Mapping[str, Any]) -> PropertyClaim:
        """The property that is meant. Raises `ArgumentError` for none, and for options that it does not take."""
        if isinstance(given, str) and given not in PROPERTIES:
            raise ArgumentError(f"`property` must be a function or one of {', '.join(PROPERTIES)}; got {given!r}")
        chosen = PROPERTIES[given] if isinstance(given, str) else given
        if not callable(chosen):
            raise ArgumentError(f"`property` must be a function or a name, got `{type(chosen).__name__}`")
        name = getattr(chosen, "__name__", type(chosen).__name__)
        # what can be gone through only once would be used up by the first example
        kept = {option: list(value) if isinstance(value, Iterator) else value for option, value in options.items()}
        try:
            inspect.signature(chosen).bind(None, **kept)
        except TypeError as error:
            raise ArgumentError(f"`{name}`: {error}") from None
        return cls(name, chosen, kept)

    def __call__(self, outcome: Any) -> Any:
        """What the property says of an outcome, or a tuple of them."""
        return self.function(outcome, **self.options)

    def __str__(self) -> str:
        """As it is written: `completes_repeats`, `completes_repeats(min_accuracy=0.5)`."""
        given = ", ".join(f"{name}={value!r}" for name, value in sorted(self.options.items()))
        return f"{self.name}({given})" if given else self.name

    def key(self, about: str) -> bytes:
        """What failures are kept under in hypothesis's example database."""
        return f"pytest-induction {self.name} {sorted(self.options.items())} {about}".encode()
