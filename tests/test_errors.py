"""Tests of user errors in one line, and of errors that keep their traceback."""
import errno
import os

import pytest

from mlic_jax.errors import ConfigError, exit_status, for_the_user
from mlic_jax.training.loop import Interrupted, NonFiniteLoss


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EISDIR, errno.ENAMETOOLONG])
def test_what_is_wrong_with_a_file_is_a_line_that_names_it(code):
  assert for_the_user(OSError(code, os.strerror(code), "photo.png")) == f"photo.png: {os.strerror(code)}"


@pytest.mark.parametrize("error", [
    ConnectionResetError(errno.ECONNRESET, "the coordinator is gone"), TimeoutError("no answer"), OSError("no errno"),
    ValueError("of a library"), KeyError("a bug")])
def test_other_errors_than_user_errors_keep_their_traceback(error):
  assert for_the_user(error) is None


def test_an_error_of_the_project_is_its_line_and_may_have_a_status_of_its_own():
  assert for_the_user(ConfigError("seed=-1")) == "seed=-1" and exit_status(ConfigError("seed=-1")) == 2
  assert exit_status(NonFiniteLoss("at step 3")) == 1 and exit_status(Interrupted(15, step=3)) == 143
