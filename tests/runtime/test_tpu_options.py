"""Tests of compiler options for TPUs; test_tpu_compiler.py tests their effect."""
import jax

from mlic_jax.runtime import tpu_options

CPU = jax.devices("cpu")[0]


def test_other_platforms_have_no_options():
  assert tpu_options.options_for(1, CPU) == {}


def test_options_that_the_compiler_does_not_know_are_not_accepted():
  assert tpu_options.accepts(CPU, (("xla_backend_optimization_level", 1),))
  assert not tpu_options.accepts(CPU, (("xla_backend_optimization_level", 1), ("xla_tpu_of_a_later_year", False)))


class OldTpu:
  """A TPU whose compiler knows no options."""
  platform = "tpu"


def test_a_tpu_whose_compiler_does_not_know_the_options_has_none(monkeypatch):
  asked = []
  monkeypatch.setattr(tpu_options, "accepts", lambda device, options: asked.append(options))
  assert tpu_options.options_for(4, OldTpu()) == {} and asked == [tpu_options.NO_SPACE_TO_BATCH]


def test_many_images_on_a_chip_need_no_options(monkeypatch):
  monkeypatch.setattr(tpu_options, "accepts", lambda *_: True)
  assert tpu_options.options_for(7, OldTpu()) == dict(tpu_options.NO_SPACE_TO_BATCH)
  assert tpu_options.options_for(8, OldTpu()) == {}
