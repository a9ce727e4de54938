"""Tests of profiles of estimated cycles by kind, direction and part of the model."""
import pytest

from mlic_jax.runtime import hlo_profile

# As the compiler for TPUs writes it: a loop of five turns, fusions in fusions, and layouts with tiles.
TEXT = """HloModule jit_step, is_scheduled=true

%product.1 (p: f32[8,128]) -> bf16[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %c.1 = bf16[8,128]{1,0:T(8,128)(2,1)} convert(%p.1), metadata={op_name="jit(step)/jvp(M)/g_a/gelu"}
  ROOT %conv.1 = bf16[8,128]{1,0} convolution(%c.1, %c.1), metadata={op_name="jit(step)/jvp(M)/g_a/conv"}
}

%outer.1 (p: f32[8,128]) -> (f32[8], bf16[8,128]) {
  %inner = bf16[8,128]{1,0} fusion(%p.2), kind=kOutput, calls=%product.1
  ROOT %t = (f32[8], bf16[8,128]) tuple(%r, %inner)
}

%moved.1 (p: f32[8,128]) -> f32[128,8] {
  %s.1 = f32[8,128]{1,0} select(%a, %b, %c), metadata={op_name="jit(step)/jvp(M)/h_s/where"}
  ROOT %x.1 = f32[128,8]{0,1} transpose(%s.1), dimensions={1,0}
}

%condition (p: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  %kept = f32[5,8]{1,0} dynamic-update-slice(%a, %b, %i), metadata={op_name="jvp(M)/while/dus"}, \
backend_config={"estimated_cycles":"10"}
  %sum.1 = f32[8]{0:T(256)} reduce(%a), to_apply=%add, metadata={op_name="transpose(jvp(M))/while/lrp_anchor"}, \
backend_config={"estimated_cycles":"4"}
  %free = s32[] add(%i, %one)
}

%add (a: f32[]) -> f32[] {
  ROOT %plus = f32[] add(%a, %b)
}

ENTRY %main.1 (x: f32[8,128]) -> f32[8] {
  %fusion.1 = (f32[8]{0}, bf16[8,128]{1,0:T(8,128)(2,1)}) fusion(%x), calls=%outer.1, \
metadata={op_name="transpose(jvp(M))/conv"}, \
backend_config={"estimated_cycles":"300"}
  %fusion.2 = f32[128,8]{0,1} fusion(%x), kind=kLoop, calls=%moved.1, backend_config={"estimated_cycles":"40"}
  %ar = f32[8]{0} all-reduce(%y), to_apply=%add, backend_config={"estimated_cycles":"7"}
  %while = (s32[]) while(%t), condition=%condition, body=%body
}
"""


@pytest.fixture(scope="module")
def found():
  return hlo_profile.instructions(TEXT)


def test_the_costliest_come_first_and_loops_count_as_often_as_they_turn(found):
  assert [(each.name, each.cycles, each.runs) for each in found] == [
      ("fusion.1", 300, 1), ("kept", 50, 5), ("fusion.2", 40, 1), ("sum.1", 20, 5), ("ar", 7, 1)]


def test_a_fusion_is_of_the_most_expensive_kind_that_it_contains_at_any_depth(found):
  assert [each.kind for each in found] == ["products", "dynamic-update-slice", "copies", "reductions", "collectives"]


def test_results_keep_their_layouts_whole(found):
  assert found[0].result == "(f32[8]{0}, bf16[8,128]{1,0:T(8,128)(2,1)})" and found[3].result == "f32[8]{0:T(256)}"


def test_what_comes_from_a_gradient_is_backward(found):
  assert [each.name for each in found if each.is_backward] == ["fusion.1", "sum.1"]


def test_a_part_is_found_by_the_instruction_and_otherwise_by_what_is_fused_in_it(found):
  parts = (("g_a", "analysis"), ("h_s", "hyper"), ("lrp_", "lrp"), ("while", "loop"))
  of = {each.name: hlo_profile.part_of(each, parts, "rest") for each in found}
  assert of == {"fusion.1": "analysis", "kept": "loop", "fusion.2": "hyper", "sum.1": "lrp", "ar": "rest"}


def test_totals_are_sorted_and_miss_nothing(found):
  totals = hlo_profile.totals(found, lambda each: each.kind)
  assert list(totals.items())[:2] == [("products", 300), ("dynamic-update-slice", 50)]
  assert sum(totals.values()) == 300 + 50 + 40 + 20 + 7


def test_a_program_without_estimates_has_no_profile():
  assert hlo_profile.instructions(TEXT.replace("estimated_cycles", "other")) == []
