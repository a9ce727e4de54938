"""Tests of the profile of `estimate` and its options; runtime/test_tpu_compiler.py has those with the TPU compiler."""
import re

import jax
import pytest

from configs import nano
from mlic_jax.__main__ import main
from mlic_jax.commands import estimate_profile
from mlic_jax.training import part_programs
from mlic_jax.training.config_schema import model_config

HLO = """HloModule step

ENTRY %main (x: f32[8]) -> f32[8] {
  %a = f32[8]{0} add(%x, %x), metadata={op_name="jvp(M)/g_a/down0/add"}, backend_config={"estimated_cycles":"3000000"}
  %b = f32[8]{0} copy(%a), metadata={op_name="transpose(jvp(M))/g_a/a"}, backend_config={"estimated_cycles":"1500000"}
  %c = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"500000"}
}
"""


def test_the_table_has_directions_and_kinds_of_each_part_in_millions():
  _, head, g_a, rest, total, *_ = estimate_profile.profile_lines(HLO)
  assert head.split() == ["million", "cycles", "total", "forward", "backward", "copies", "elementwise"]
  assert g_a.split() == ["g_a", "4.50", "3.00", "1.50", "1.50", "3.00"]
  assert rest.split() == ["everything", "else", "0.50", "0.50", "0.00", "0.50", "0.00"]
  assert total.split() == ["all", "5.00", "3.50", "1.50", "2.00", "3.00"]


def test_the_most_expensive_instruction_is_listed_with_its_layout_and_origin():
  line = next(line for line in estimate_profile.profile_lines(HLO) if "g_a/down0/add" in line)
  assert line.split()[:4] == ["3.000", "1", "elementwise", "f32[8]{0}"]


def test_a_program_without_estimates_says_so():
  assert estimate_profile.profile_lines(HLO.replace("estimated", "other")) == [
      "the compiler estimates no cycles for this program"]


@pytest.mark.parametrize("arguments, words", [
    (["--what", "evaluate", "--part", "scan"], "--part=scan with --what=evaluate; wanted --what=train"),
    (["--what", "decode", "--save-hlo", "x"], "--what=decode compiles several programs; --save-hlo writes one"),
    (["--find-batch", "--profile"], "--find-batch compiles several programs")])
def test_options_that_do_not_go_together_are_one_line(arguments, words, capsys):
  assert main(["estimate", "--config", "nano", "--topology", "v5e:2x4", *arguments]) == 2
  said = capsys.readouterr().err
  assert words in said and said.count("\n") == 1


def small_config():
  c = nano.get_config()
  c.model.update(N=8, M=16, num_slices=2, transforms="helpers.light_transforms", widths=(), hyper_widths=(8, 8),
                 channel_widths=(8,), entropy_widths=(8,), lrp_widths=(8,))
  c.crop_size, c.scan_unroll = 64, 1
  return c


@pytest.fixture(scope="module")
def programs():
  """{part: (its arguments, its program, lowered)}"""
  config, found = small_config(), {}
  for part in part_programs.PARTS:
    program, arguments = part_programs.part_program(part, config, model_config(config, "small"), 2, jax.devices()[0])
    found[part] = arguments, program.lower(*arguments)
  return found


@pytest.mark.parametrize("part, modules", [("scan", {"h_s", "slices"}), ("g_a", {"g_a"}), ("g_s", {"g_s"})])
def test_the_program_of_a_part_is_the_gradient_of_its_parameters(programs, part, modules):
  arguments, lowered = programs[part]
  gradients = lowered.out_info if part == "g_a" else lowered.out_info[0]
  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert set(gradients) == modules | {"log_gain", "log_inverse_gain"} and shapes(gradients) == shapes(arguments[0])


def test_every_part_of_the_model_is_found_in_the_names_of_a_program(programs):
  names = "".join(lowered.as_text(debug_info=True) for _, lowered in programs.values())
  missing = {part for pattern, part in estimate_profile.PARTS if not re.search(pattern, names)}
  # These are of other codecs, and of the rest of a step.
  assert missing <= {"global hyper context", "selection map", "h_a", "prior of z", "optimizer", estimate_profile.LOOP}


def test_the_names_of_parts_are_those_of_the_programs():
  assert estimate_profile.PROGRAMS == part_programs.PARTS
