"""Other values for the settings of a part than their defaults, so that the tests of its kind run with both."""

from types import ModuleType

SIZE = 5  # a positive odd number: of channels, or of places


def other_options(module: ModuleType) -> dict[str, bool | int]:
  """{name: another value than the default} of the OPTIONS of a part."""
  return {name: not value if isinstance(value, bool) else SIZE for name, value in
          getattr(module, "OPTIONS", {}).items()}
