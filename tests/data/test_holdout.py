"""Tests of held-out images: their choice, and its stability over restarts of a run."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_loader import flat, ten_photographs  # noqa: F401 (a fixture among them)

from mlic_jax.data.holdout import HeldOut, held_out_records, names, split
from mlic_jax.data.image_io import ImageError


def test_one_in_holdout_every_images_is_held_out_unless_there_are_others_for_it(folder, tmp_path):
  for i in range(400):
    (folder / f"{i}.bmp").touch()  # names are enough
  flat(tmp_path / "one" / "a.png", 0)
  both = f"{folder}*1,{tmp_path / 'one'}*3"
  [(train, weight), (one, one_weight)], [held_out] = split(both, "", 5)
  assert 60 < len(held_out) < 100 and len(train) + len(held_out) == 410
  assert not set(train.paths) & set(held_out.paths)
  assert (weight, len(one), one_weight) == (1.0, 1, 3.0)
  [(train, _)], held_out = split(str(folder), both.replace("*1", "").replace("*3", ""), 5)
  assert len(train) == 410 and [len(source) for source in held_out] == [410, 1]


def test_an_image_stays_held_out_when_the_folder_grows_or_moves(folder, tmp_path):
  held_out = lambda where: {name.partition("/")[2] for name in names(split(str(where), "", 5)[1])}
  before = held_out(folder)
  assert before
  for name in ("00", "5a", "zz"):  # before, between and behind those that are there
    flat(folder / f"{name}.png", 0)
  grown = held_out(folder)
  assert before <= grown <= before | {"00.png", "5a.png", "zz.png"}
  assert held_out(folder.rename(tmp_path / "elsewhere")) == grown


@pytest.mark.parametrize("data_dir, holdout_every, message", [
    ("", 5, "data_dir is empty"), ("missing", 5, "no such folder"), (".", 5, "holds no image"),
    ("photographs", 500, "none left for evaluation"), ("photographs", 5, "1 images, none left"),
    ("photographs", 1, "wanted at least 2")])
def test_a_folder_that_cannot_be_trained_on_is_one_line(tmp_path, data_dir, holdout_every, message):
  flat(tmp_path / "photographs" / "a.png", 0)
  (tmp_path / "empty").mkdir()
  where = {"": "", ".": tmp_path / "empty"}.get(data_dir, tmp_path / data_dir)
  with pytest.raises(ImageError, match=message) as error:
    split(str(where), "", holdout_every)
  assert "\n" not in str(error.value)


# --- images that an earlier start of the run held out ----------------------------------

ODD_NAMES = ("a\u2028b", "a\nb", "a\tb", "a\\nb", os.fsdecode(b"caf\xe9"), "\x85", "\r")


@pytest.fixture(name="images")
def twenty_images_of_one_size_and_odd_names(tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / "data" / "album").mkdir(parents=True)
  for name in (*ODD_NAMES, *map(str, range(13))):
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "data" / "album" / f"{name}.bmp")
  return tmp_path / "data" / "album"


def contents(sources):
  return {path.read_bytes() for source in sources for path in source.paths}


def renamed_files(images):
  moved = images.with_name("others")
  moved.mkdir()
  for i, path in enumerate(sorted(images.iterdir())):
    path.rename(moved / f"{i}.bmp")
  return moved


@pytest.mark.parametrize("move", [
    lambda images: images.parent, lambda images: images.rename(images.with_name("renamed")).parent, renamed_files,
    lambda images: shutil.copytree(images, images.parent / "deep" / "er" / "album").parents[1]],
    ids=["folder_above", "renamed_and_folder_above", "files_renamed", "copied_below"])
def test_a_recorded_image_is_never_trained_on_wherever_its_folder_goes(images, move):
  train, held_out = split(str(images), "", 3)
  record, held, trained = held_out_records(held_out), contents(held_out), contents([source for source, _ in train])
  assert len(held) > 3
  moved = move(images)
  flat(moved / "new.bmp", 7)
  for _ in range(2):  # and at the start after that
    train, held_out = split(str(moved), "", 3, recorded=record)
    assert contents(held_out) == held
    assert trained <= contents([source for source, _ in train])  # no trained image is evaluated on
    record = [*record, *held_out_records(held_out)]


def test_without_its_record_a_moved_folder_holds_out_others(images):
  """The test above would pass if names did not matter."""
  before = contents(split(str(images), "", 3)[1])
  assert contents(split(str(images.parent), "", 3)[1]) != before


def test_a_recorded_set_changes_nothing_where_names_stay_and_new_images_are_held_out_too(images):
  record = held_out_records(split(str(images), "", 3)[1])
  (images / "copy.bmp").write_bytes(next(path for path in images.iterdir() if path.stem == "3").read_bytes())
  for i in range(20, 40):
    flat(images / f"{i}.bmp", i)
  with_record, without = (split(str(images), "", 3, recorded=each) for each in (record, ()))
  assert names(with_record[1]) == names(without[1]) and len(names(without[1])) > len(record)
  assert [len(source) for source, _ in with_record[0]] == [len(source) for source, _ in without[0]]


def test_names_alone_identify_recorded_images_of_older_programs_when_the_folder_moves_up(images):
  held_out = split(str(images), "", 3)[1]
  record, held = [HeldOut(name, "") for name in names(held_out)], contents(held_out)
  assert contents(split(str(images.parent), "", 3, recorded=record)[1]) == held


def test_images_of_eval_dir_that_moved_into_the_training_folder_are_not_trained_on(images, tmp_path):
  for i in range(3):
    flat(tmp_path / "kodak" / f"{i}.bmp", i)
  record = held_out_records(split(str(images), str(tmp_path / "kodak"), 0)[1])
  (tmp_path / "kodak" / "0.bmp").rename(images / "new name.bmp")
  [(train, _)], held_out = split(str(images), str(tmp_path / "kodak"), 0, recorded=record)
  assert "new name.bmp" not in [Path(path).name for path in train.paths] and len(train) == 20
  assert len(names(held_out)) == 2
