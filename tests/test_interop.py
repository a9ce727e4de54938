"""The authors' state dicts in the shapes in which they are met, and those that are refused."""

import json
from pathlib import Path

import golden_fill
import jax
import numpy as np
import pytest

from mlic_jax.interop.official import WeightsError, from_state_dict

MANIFEST = Path(__file__).parent / "data" / "golden" / "manifest_A.json"


@pytest.fixture(scope="module")
def weights():
  return golden_fill.fill(json.loads(MANIFEST.read_text()))


def assert_same(a, b):
  assert a[0] == b[0]
  jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


def test_wrappers_prefixes_and_both_namings_of_the_bottleneck_give_the_same_variables(weights):
  old_names = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
  renamed = {}
  for name, value in weights.items():
    first, _, rest = name.partition(".")
    if first == "entropy_bottleneck" and "." in rest:
      kind, number = rest.split(".")
      name = f"entropy_bottleneck.{old_names[kind]}{number}"
    renamed[f"module.{name}"] = value
  renamed["module.gaussian_conditional.scale_table"] = np.zeros(64, np.float32)  # a buffer
  assert_same(from_state_dict({"state_dict": renamed}), from_state_dict(weights))


def test_unknown_and_missing_keys_are_listed_with_the_nearest_names(weights):
  broken = dict(weights)
  broken["h_a.reduction.0.weigth"] = broken.pop("h_a.reduction.0.weight")
  with pytest.raises(WeightsError) as caught:
    from_state_dict(broken)
  message = str(caught.value)
  assert "missing keys: h_a.reduction.0.weight (nearest: h_a.reduction.0.weigth)" in message
  assert "unknown keys: h_a.reduction.0.weigth (nearest: h_a.reduction.0.weight)" in message
  assert "\n" not in message


def test_another_state_dict_is_refused(weights):
  with pytest.raises(WeightsError, match="not a state dict of MLIC"):
    from_state_dict({"conv.weight": np.zeros((3, 3))})
