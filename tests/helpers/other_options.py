"""Other values than the defaults for the options of a module, so that tests run with both."""

from types import ModuleType

SIZE = 5  # a positive odd number: of channels or positions


def other_options(module: ModuleType) -> dict[str, bool | int]:
  """Return {name: another value than the default} of the OPTIONS of a module."""
  return {name: not value if isinstance(value, bool) else SIZE for name, value in
          getattr(module, "OPTIONS", {}).items()}
