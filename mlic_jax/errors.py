"""Errors that a user can mend, and the line that reports them."""
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
  """A configuration or argument that cannot be used; one line with what came and what was wanted."""


def for_the_user(error: BaseException) -> str | None:
  """One line for a user error; None for a bug or a failure of the machine, which deserves its traceback.

  User errors are those that mlic_jax defines (ConfigError, ImageError, BitstreamError, ...), those of files and
  folders, and extras of the package that are not installed.
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
  """What kept the machine from reading a file, in a few words; None when the content of the file is at fault.

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
  """The message of an error of a library, without line breaks and at most 200 characters; its type if it has none."""
  return " ".join(str(error).split())[:200] or type(error).__name__


def exit_status(error: BaseException) -> int:
  """The exit status after such an error: 2, unless the error has a `status` of its own."""
  return getattr(error, "status", 2)
