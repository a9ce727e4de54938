"""What a user is told when something goes wrong that a user can change."""
import errno

# Of files, folders and disks. Others, such as a connection that broke, are no fault of what the user named.
FILE_ERRORS = (errno.EPERM, errno.ENOENT, errno.EIO, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
               errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EDQUOT, errno.ESTALE,
               errno.ENXIO, errno.ETXTBSY, errno.ESPIPE)


# Packages that a part needs and others do without, and the extra that brings them (pyproject.toml).
EXTRAS = {"grain": "train", "tensorboardX": "train", "skimage": "eval", "matplotlib": "eval", "bjontegaard": "eval"}


class ConfigError(ValueError):
  """A configuration that cannot be used; one line that says what came and what was wanted."""


def for_the_user(error: BaseException) -> str | None:
  """One line, or None for what is a bug, or a machine's failure, and deserves its traceback.

  Errors that mlic_jax defines (ConfigError, ImageError, BitstreamError, ...), those of files and folders, and extras
  of the package that are not installed.
  """
  if type(error).__module__.startswith("mlic_jax."):
    return str(error)
  # A pipe that the user named, and whose reader went, has a name.
  if isinstance(error, OSError) and (error.errno in FILE_ERRORS or error.errno == errno.EPIPE and error.filename):
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
  if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
    return f"{error.name} is not installed; it comes with pip install 'mlic_jax[{EXTRAS[error.name]}]'"
  return None


def exit_status(error: BaseException) -> int:
  """Of a program that such an error ends: 2, what a user can mend, unless the error has a `status` of its own."""
  return getattr(error, "status", 2)
