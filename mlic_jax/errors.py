"""User errors, and the line that reports them."""
import errno
import os

# Errors of files, folders and disks. Others, such as a broken connection, are not caused by a path of the user.
FILE_ERRORS = (errno.EPERM, errno.ENOENT, errno.EIO, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
               errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EDQUOT, errno.ESTALE,
               errno.ENXIO, errno.ETXTBSY, errno.ESPIPE)

# Errors of the machine while it reads a file that may be intact.
SYSTEM_ERRORS = (errno.EPERM, errno.EIO, errno.ENOMEM, errno.EACCES, errno.EBUSY, errno.ENFILE, errno.EMFILE,
                 errno.ESTALE, errno.ETIMEDOUT)

# Packages that not every command needs, and the extra that installs them (pyproject.toml).
EXTRAS = {"grain": "train", "tensorboardX": "train", "skimage": "eval", "matplotlib": "eval", "bjontegaard": "eval"}


class ConfigError(ValueError):
  """An invalid configuration or argument; one line with the value and the wanted values."""


def for_the_user(error: BaseException) -> str | None:
  """Return one line for a user error; None for bugs and failures of the machine, which get a traceback.

  User errors are the errors of mlic_jax (ConfigError, ImageError, BitstreamError, ...), errors of files and folders,
  and extras of the package that are not installed.
  """
  if type(error).__module__.startswith("mlic_jax."):
    return str(error)
  # A broken pipe has a filename when the user named it.
  if isinstance(error, OSError) and (error.errno in FILE_ERRORS or error.errno == errno.EPIPE and error.filename):
    if error.filename:
      return f"{error.filename}: {error.strerror}"
    return "the current folder no longer exists" if error.errno == errno.ENOENT else str(error.strerror or error)
  if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
    return f"{error.name} is not installed; it comes with pip install 'mlic_jax[{EXTRAS[error.name]}]'"
  return None


def system_problem(error: BaseException) -> str | None:
  """Return why the machine could not read a file, in a few words; None if the content of the file is invalid.

  Libraries wrap the error of the system in their own, and TensorStore has only its text."""
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, MemoryError) or "RESOURCE_EXHAUSTED" in str(seen):
      return "not enough memory"
    if isinstance(seen, OSError) and seen.errno in SYSTEM_ERRORS:
      return str(seen.strerror)
    if "PERMISSION_DENIED" in str(seen):
      return os.strerror(errno.EACCES)
    seen = seen.__cause__ or seen.__context__
  return None


def one_line(error: BaseException) -> str:
  """Return the message of an error in one line of at most 200 characters; its type without a message."""
  return " ".join(str(error).split())[:200] or type(error).__name__


def exit_status(error: BaseException) -> int:
  """Return the exit status after a user error: its attribute `status`, or 2."""
  return getattr(error, "status", 2)
