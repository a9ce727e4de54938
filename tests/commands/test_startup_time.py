"""Tests of what makes commands start quickly."""
import gc

from mlic_jax.coding.codec import Codec
from mlic_jax.commands.codec_io import load_codecs


def test_the_garbage_collector_is_off_while_a_codec_loads_and_then_on(monkeypatch):
  seen = []
  monkeypatch.setattr(Codec, "load", lambda *_, **__: seen.append(gc.isenabled()))
  load_codecs(["a", "b"])
  assert seen == [False, False] and gc.isenabled()
