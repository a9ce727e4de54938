"""Compilation of the decoder in a thread, while the encoder compiles and runs.

Coding calls compiled functions one after the other, and most of them compile on a single core. The functions of the
decoder can be compiled as soon as the image size is known.
"""
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax import ShapeDtypeStruct

from mlic_jax.coding import jit_functions
from mlic_jax.model.mlic import build, side_multiple


@contextlib.contextmanager
def decoder_compiled_in_background(codec, height: int, width: int) -> Iterator[None]:
  """Compiles the decoder of a `Codec` in a thread, while the body codes an image of height x width pixels.

  The thread has ended when the context exits, so it disturbs no later measurement. The context saves time only where
  executables are cached on disk (runtime/executable_cache.py) and this image size is not cached yet. An error in the
  thread is not raised: decoding meets the same error and reports it."""
  if codec.tile_side(height, width):                     # tiles use other functions
    yield
    return
  with ThreadPoolExecutor(1) as pool:
    pool.submit(_compile_decoder, codec, height, width)
    yield


def _compile_decoder(codec, height: int, width: int) -> None:
  """Compiles the functions that `Codec.decode` calls, in its order, for arguments that are known by shape only."""
  config, k = codec.config, np.int32(0)
  model = build(config), codec.variables
  h, w = (-(-side // side_multiple(config)) for side in (height, width))
  z_symbols = ShapeDtypeStruct((1, h, w, config.N), np.int32)
  anchors = jit_functions.start.prepare(*model, z_symbols)
  if anchors is None:
    return
  hyper, positions, _, state = anchors
  symbols = ShapeDtypeStruct(positions.shape, np.int32)
  nonanchors = jit_functions.nonanchors.prepare(*model, k, hyper, state, symbols)
  if nonanchors is None:
    return
  state = nonanchors[-1]
  if config.num_slices > 1:
    jit_functions.advance.prepare(*model, k, hyper, state, symbols)
  jit_functions.finish.prepare(*model, k, hyper, state, symbols, codec.choose_quality(None))
