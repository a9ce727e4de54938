"""Tests of the measured memory of a checkpoint."""
import sys

import numpy as np
import pytest

from mlic_jax.evaluation import codec_cost


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset on Linux only")
def test_the_peak_of_memory_is_that_since_the_last_restart():
  large = np.ones(2**28, np.uint8)
  peak = codec_cost._peak_memory()
  del large
  codec_cost.restart_peak_memory()
  after = codec_cost._peak_memory()
  assert after < peak - 2**27
  large = np.ones(2**28, np.uint8)
  assert codec_cost._peak_memory() > after + 2**27 and large.all()
