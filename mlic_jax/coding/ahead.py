"""The first picture of a size, on two cores.

Coding calls one compiled function after the other, and most of them compile on a single core. But the passes and the
synthesis can be compiled as soon as the size of the picture is known, beside what the encoder begins with.
"""
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np


@contextlib.contextmanager
def decoder_compiled_beside(codec, height: int, width: int) -> Iterator[None]:
  """Around the first coding and decoding of a picture of that size with a `Codec`, while a thread decodes zeros. At its
  end the thread has ended, so that nothing disturbs what is timed next.

  What goes wrong there goes wrong for the picture, too, and is said of that."""
  def decode_zeros():
    z_symbols = np.zeros((1, *codec._blocks(height, width), codec.config.N), np.int32)
    last_pass = codec._walk(z_symbols, lambda k, anchors, places, prior: np.zeros(places.shape, np.int32))
    codec._finish(last_pass, height, width, codec.choose_quality(None))

  with ThreadPoolExecutor(1) as beside:
    beside.submit(decode_zeros)
    yield
