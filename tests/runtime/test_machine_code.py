"""Tests of functions whose machine code is cached: their arguments are checked before they reach the code."""
import ctypes

import numpy as np
import pytest

from mlic_jax.runtime.machine_code import machine_code


@machine_code(("int32", "int64"), lengths=1)
def double(values, doubled, num_values):
  for i in range(num_values):
    doubled[i] = 2 * values[i]


def test_a_function_reads_and_writes_arrays():
  doubled = np.zeros(3, np.int64)
  double(np.array([1, -2, 3], np.int32), doubled, 2)
  assert doubled.tolist() == [2, -4, 0]


@pytest.mark.parametrize("values", [np.zeros(4, np.int64), np.zeros((2, 2), np.int32), np.zeros(8, np.int32)[::2]],
                         ids=["another_dtype", "two_dimensions", "gaps"])
def test_an_array_of_another_kind_is_refused(values):
  with pytest.raises(ctypes.ArgumentError):
    double(values, np.zeros(4, np.int64), 4)
