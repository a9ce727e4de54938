"""What a user is told when something goes wrong that a user can change."""


def for_the_user(error: BaseException) -> str | None:
  """One line, or None for what is a bug and deserves its traceback.

  Errors of files and folders, and those that mlic_jax defines: ImageError, BitstreamError, CheckpointError, ...
  """
  if isinstance(error, OSError):
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
  if isinstance(error, ValueError) and type(error).__module__.startswith("mlic_jax."):
    return str(error)
  return None
