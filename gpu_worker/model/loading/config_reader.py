"""A section of a model config, whose every error names the setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gpu_worker.model.errors import ModelConfigError

_MISSING: Final = object()
# NeMo adds switches over time; an unknown one that is off leaves the computation as it was.
_OFF: Final = (None, False, 0)


class Section:
    """Typed access to one mapping of a config.

    The section records which settings were read, so that `refuse_unknown` can find the others.
    All methods raise ModelConfigError.
    """

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name: Final = name
        self._values: Final = values
        self._read: Final[set[str]] = set()

    def raw(self, key: str, default: object = _MISSING) -> Any:
        """Return the unchecked value."""
        self._read.add(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            value = default
        if value is _MISSING:
            raise ModelConfigError(f"The model config lacks '{self._path(key)}'.")
        return value

    def integer(self, key: str, default: object = _MISSING) -> int:
        """Return a whole number."""
        value = self.raw(key, default)
        if type(value) is not int:
            raise self.unsupported(key, value, "an integer")
        return value

    def positive(self, key: str, default: object = _MISSING) -> int:
        """Return a whole number of at least 1."""
        value = self.integer(key, default)
        if value < 1:
            raise self.unsupported(key, value, "an integer of at least 1")
        return value

    def optional_integer(self, key: str) -> int | None:
        """Return a whole number, or None if the setting is absent or null."""
        return None if self.raw(key, None) is None else self.integer(key)

    def number(self, key: str, default: object = _MISSING) -> float:
        """Return a finite number."""
        value = self.raw(key, default)
        # YAML 1.1 reads "1e-5" without a dot as a string; OmegaConf, which wrote the file, does not.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value - value != 0:
            raise self.unsupported(key, self.raw(key, default), "a number")
        return float(value)

    def boolean(self, key: str, default: object = _MISSING) -> bool:
        """Return true or false."""
        value = self.raw(key, default)
        if type(value) is not bool:
            raise self.unsupported(key, value, "true or false")
        return value

    def text(self, key: str, default: object = _MISSING) -> str:
        """Return a string."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.unsupported(key, value, "a string")
        return value

    def section(self, key: str) -> Section:
        """Return a mapping."""
        value = self.raw(key)
        if not isinstance(value, Mapping):
            raise self.unsupported(key, value, "a mapping")
        return Section(self._path(key), value)

    def optional_section(self, key: str) -> Section | None:
        """Return a mapping, or None if the setting is absent or null."""
        return None if self.raw(key, None) is None else self.section(key)

    def expect(
        self, key: str, supported: tuple[object, ...], default: object = _MISSING, *, last_part: bool = False
    ) -> None:
        """Raise an error unless the value is a supported one; `last_part` compares a dotted name's end."""
        value = self.raw(key, default)
        compared = value.rpartition(".")[2] if last_part and isinstance(value, str) else value
        if last_part and compared == "":
            return
        # True == 1 in Python, but not in a config.
        if not any(
            compared == item and isinstance(compared, bool) == isinstance(item, bool) for item in supported
        ):
            wanted = " or ".join("null" if item is None else str(item) for item in supported)
            raise self.unsupported(key, value, wanted)

    def refuse_unknown(self, ignored: Iterable[str]) -> None:
        """Raise an error for a setting that was not read, unless it is ignored or switched off."""
        for key in self._values:
            value = self._values[key]
            if key not in self._read and key not in ignored and not any(value is off for off in _OFF):
                raise ModelConfigError(
                    f"The model config has the unknown setting '{self._path(key)}' = {value!r}; supported "
                    f"here are {', '.join(sorted(self._read))}."
                )

    def unsupported(self, key: str, value: object, supported: str) -> ModelConfigError:
        """Return the error for a value that this implementation does not compute."""
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:120] + "..."
        return ModelConfigError(
            f"The model config has '{self._path(key)}' = {shown}, which is not supported; supported: "
            f"{supported}."
        )

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key
