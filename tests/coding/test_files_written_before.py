"""Tests that model directories and .mlic files of an earlier commit load, decode and are written identically."""
import json

import numpy as np
import pytest
from helpers.written_before import FILES, FOLDER, unpack

from mlic_jax.coding import bitstream
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.coding.codec import Codec

pytestmark = pytest.mark.usefixtures("as_shipped")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """{name: path} of the model directory and of the run."""
  folder = tmp_path_factory.mktemp("written_before")
  return {name: unpack(name, folder) for name in ("single_rate", "run")}


@pytest.fixture(scope="module")
def codecs(folders):
  return {name: Codec.load(path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def images():
  with np.load(FOLDER / "images.npz") as arrays:
    return dict(arrays)


@pytest.mark.parametrize("name, contexts, num_rates", [("single_rate", 4, 0), ("run", 1, 2)])
def test_a_model_directory_loads_with_the_fingerprint_it_was_saved_with(folders, name, contexts, num_rates):
  model = load_model(folders[name])
  saved = folders[name] / "model" if name == "run" else folders[name]
  assert model.fingerprint.hex() == json.loads((saved / "config.json").read_text())["fingerprint"]
  assert (len(model.config.contexts), model.config.num_rates) == (contexts, num_rates)
  assert model.name == name


@pytest.mark.parametrize("name", FILES)
def test_a_file_decodes_to_the_pixels_it_decoded_to_when_it_was_written(codecs, images, name):
  decoded = codecs[FILES[name]["model"]].decode((FOLDER / f"{name}.mlic").read_bytes())
  difference = np.abs(decoded.astype(int) - images[FILES[name]["decoded"]])
  assert difference.max() <= 1 and np.mean(difference > 0) <= 1e-4  # another CPU may round a value to its neighbor


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_coded_to_the_file_it_was_coded_to_before(codecs, images, name):
  written, options = (FOLDER / f"{name}.mlic").read_bytes(), FILES[name]["options"]
  options = options | {"icc_profile": options["icc_profile"].encode() or None}
  codec = codecs[FILES[name]["model"]]
  codec = codec.with_options(skip=FILES[name]["skipped"] or None)
  content, then = (bitstream.parse(blob) for blob in (codec.encode(images[FILES[name]["image"]], **options), written))
  if then.origin is not None:                            # the machine and the version of jax that wrote it
    content = content._replace(origin=then.origin)
  assert bitstream.write(content) == written
