"""Training: photographs (data), objective (losses), one step (step, parallel), checkpoints, and the loop."""


class ConfigError(ValueError):
  """A configuration that cannot be trained; one line that says what came and what was wanted."""
