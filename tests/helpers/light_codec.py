"""A variable-rate codec of three rate points that compiles in seconds, for tests of what is around the model.

Its transforms have the stages, layers and halos of larger ones: g_a reaches one position of y, and g_s two."""
import dataclasses
import functools

from conftest import TINY, random_variables

from mlic_jax.coding.analysis_stages import Stages
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.receptive_field import Halos

LIGHT = dataclasses.replace(TINY, transforms="helpers.light_transforms", hyper_widths=(16, 16), contexts=("channel",),
                            entropy_widths=(16,), lrp_widths=())
CHENG = dataclasses.replace(TINY, N=4, M=8, contexts=(), entropy_widths=(16,), lrp_widths=())  # those of the papers
UNSHUFFLED = dataclasses.replace(LIGHT, transforms="unshuffled", widths=(24, 32), contexts=())  # with wider halos


# What tiles need to know of the light transforms; test_tiled_coder.py measures it.
LIGHT_HALOS = Halos(analysis=1, synthesis=2, period=1)
LIGHT_STAGES = Stages(cut=1, factor=8, channels=16, first=1, second=1)


@functools.cache
def light_model() -> Model:
  variables = random_variables(LIGHT)
  return Model("light", LIGHT, variables, build_table(LIGHT, variables), b"8 bytes.", None)
