"""Compilation for the decoder in a thread, while the encoder compiles and runs.

Coding calls one compiled function after the other, and most of them compile on a single core. But those of the decoder
can be compiled as soon as the size of the image is known.
"""
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax import ShapeDtypeStruct

from mlic_jax.coding import jit_functions
from mlic_jax.model.mlic import build, side_multiple


@contextlib.contextmanager
def decoder_compiled_beside(codec, height: int, width: int) -> Iterator[None]:
  """Around the first coding and decoding of an image of that size with a `Codec`; meanwhile a thread compiles for the
  decoder. At its end the thread has ended, so that it disturbs nothing that is timed.

  It makes a difference where executables are cached on disk (runtime/executable_cache.py) and those of that size are
  not yet. An error in the thread also occurs when the image is coded, and is reported there."""
  with ThreadPoolExecutor(1) as beside:
    beside.submit(_compile_decoder, codec, height, width)
    yield


def _compile_decoder(codec, height: int, width: int) -> None:
  """As `Codec.decode` calls them, on shapes."""
  config, k = codec.config, np.int32(0)
  of_model = build(config), codec.variables
  h, w = (-(-side // side_multiple(config)) for side in (height, width))
  z_symbols = ShapeDtypeStruct((1, h, w, config.N), np.int32)
  started = jit_functions.start.prepare(*of_model, z_symbols)
  if started is None:
    return
  hyper, positions, _, state = started
  symbols = ShapeDtypeStruct(positions.shape, np.int32)
  between = jit_functions.nonanchors.prepare(*of_model, k, hyper, state, symbols)
  if between is None:
    return
  state = between[-1]
  if config.num_slices > 1:
    jit_functions.advance.prepare(*of_model, k, hyper, state, symbols)
  jit_functions.finish.prepare(*of_model, k, hyper, state, symbols, codec.choose_quality(None))
