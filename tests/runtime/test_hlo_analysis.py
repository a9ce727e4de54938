"""Tests of the analysis of HLO text."""
from mlic_jax.runtime import hlo_analysis

# A loop of five turns, and in it one of three; a fused computation, which counts where it is called.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %inside = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"1000"}
}

%inner_condition (p: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner_body.1 (p: (s32[])) -> (s32[]) {
  %x = f32[8]{0} multiply(%a, %b), backend_config={"estimated_cycles":"100"}
}

%condition (p: (s32[])) -> pred[] {
  %limit.2 = s32[] constant(5)
  ROOT %less.2 = pred[] compare(%i, %limit.2), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  %one = s32[] constant(1)
  %fusion = f32[8]{0} fusion(%x), calls=%fused, backend_config={"estimated_cycles":"10"}
  %gathered = pred[3]{0} all-gather(pred[1]{0} %d), dimensions={0}
  %while.2 = (s32[]) while(%t), condition=%inner_condition, body=%inner_body.1
}

%unknown_condition (p: (s32[])) -> pred[] {
  ROOT %less.3 = pred[] compare(%i, %n), direction=LT
}

%unknown_body (p: (s32[])) -> (s32[]) {
  %y = f32[8]{0} add(%a, %b), backend_config={"estimated_cycles":"7"}
}

%called (p: f32[8]) -> f32[8] {
  %z = f32[8]{0} add(%a, %b), backend_config={"estimated_cycles":"3"}
}

ENTRY %main.4 (x: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[8,128]{1,0:T(8,128)}, bf16[4]{0}) all-reduce(f32[8,128] %a, bf16[4] %b), to_apply=%add
  %all-reduce-start = f32[2]{0} all-reduce-start(%c), channel_id=2
  %all-reduce-done = f32[2]{0} all-reduce-done(%all-reduce-start)
  %while = (s32[]) while(%t), condition=%condition, body=%body
  %while.3 = (s32[]) while(%t), condition=%unknown_condition, body=%unknown_body
  %call = f32[8]{0} call(%x), to_apply=%called
  %chosen = f32[8]{0} conditional(%i, %x, %x), branch_computations={%called, %unknown_body}
}
"""


def test_a_computation_runs_as_often_as_the_loops_around_it_turn():
  assert hlo_analysis.runs(TEXT) == {"main.4": 1, "body": 5, "inner_body.1": 15, "unknown_body": 2, "called": 2}


def test_cycles_are_those_of_every_turn():
  assert hlo_analysis.cycles(TEXT) == 5 * 10 + 15 * 100 + 2 * 7 + 2 * 3


def test_the_start_of_a_collective_on_gpus_counts_without_its_operands():
  start = "  %all-reduce-start.1 = ((f32[8]{0}, f32[4]{0}), f32[8]{0}, f32[4]{0}) all-reduce-start(%c, %d)\n"
  found = hlo_analysis.collectives(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{start}}}\n")
  assert found == {"all-reduce": (1, 8 * 4 + 4 * 4)}


def test_collectives_are_counted_with_their_bytes():
  assert hlo_analysis.collectives(TEXT) == {"all-reduce": (2, 8 * 128 * 4 + 4 * 2 + 2 * 4), "all-gather": (5, 5 * 3)}
