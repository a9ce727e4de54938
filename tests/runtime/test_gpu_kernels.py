"""Tests of the launches, bytes and operations in the HLO text of programs for GPUs."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlic_jax.runtime import hlo_instructions
from mlic_jax.runtime.gpu_kernels import Kernels

# A loop of ten turns with a fusion that takes a slice, a convolution, an asynchronous copy and an update in place.
TEXT = """HloModule jit_f, is_scheduled=true

%fused_slice (p.0: f32[10,64], p.1: s32[]) -> f32[64] {
  %p.0 = f32[10,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
  ROOT %bitcast.1 = f32[64]{0} bitcast(%slice)
}

%fused_update (q.0: f32[10,64], q.1: f32[64], q.2: s32[]) -> f32[10,64] {
  %q.0 = f32[10,64]{1,0} parameter(0)
  %q.1 = f32[64]{0} parameter(1)
  %bitcast.2 = f32[1,64]{1,0} bitcast(%q.1)
  %q.2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = f32[10,64]{1,0} dynamic-update-slice(%q.0, %bitcast.2, %q.2, %zero.1)
}

%body (t: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
  %t = (s32[], f32[10,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %stack = f32[10,64]{1,0} get-tuple-element(%t), index=1
  %loop_slice_fusion = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%fused_slice
  %fusion-start = ((f32[10,64]{1,0}, s32[]), f32[64]{0}, u32[]) fusion-start(%stack, %i), calls=%fused_slice
  %fusion-done = f32[64]{0} fusion-done(%fusion-start)
  %conv = (f32[64]{0}, u8[0]{0}) custom-call(%loop_slice_fusion, /*index=1*/%fusion-done), custom_call_target=%s
  %y = f32[64]{0} get-tuple-element(%conv), index=0
  %updated = f32[10,64]{1,0} fusion(%stack, %y, %i), kind=kInput, calls=%fused_update
  ROOT %next = (s32[], f32[10,64]{1,0}) tuple(%i, %updated)
}

%condition (t.1: (s32[], f32[10,64])) -> pred[] {
  ROOT %less = pred[] fusion(%t.1), kind=kLoop, calls=%fused_less
}

ENTRY %main (x: f32[10,64]) -> f32[10,64] {
  %x = f32[10,64]{1,0} parameter(0)
  %start = s32[] constant(0)
  %tuple = (s32[], f32[10,64]{1,0}) tuple(%start, %x)
  %while = (s32[], f32[10,64]{1,0}) while(%tuple), condition=%condition, body=%body, backend_config=%s
  %out = f32[10,64]{1,0} get-tuple-element(%while), index=1
  ROOT %copy = f32[10,64]{0,1} copy(%out)
}
""".replace("=%s", '="__cudnn$convForward"', 1).replace("=%s", '={"known_trip_count":{"n":"10"}}')


def test_launches_are_those_of_every_turn():
  found = Kernels.of(TEXT)
  assert found.by_kind == {"loop fusion": 10, "copy": 11, "__cudnn$convForward": 10, "input fusion": 10}
  assert found.launches == 41 and found.in_loops == 40 and found.convolutions == {"Forward": 10}


def test_slices_and_updates_in_place_count_what_they_touch():
  row, number = 64 * 4, 4
  sliced, convolved, updated = 2 * row + number, 3 * row, 2 * row + number
  assert Kernels.of(TEXT).accessed == 10 * (2 * sliced + convolved + updated) + 2 * 10 * row


def compiled_flops(function, *arguments):
  return hlo_instructions.flops(jax.jit(function).lower(*arguments).as_text("hlo"))


def test_a_product_counts_two_operations_for_each_multiplication():
  a, b = np.ones((5, 7, 3), np.float32), np.ones((5, 3, 11), np.float32)
  assert compiled_flops(lambda a, b: a @ b, a, b) == 2 * 5 * 7 * 3 * 11


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_the_inputs_of_its_group(groups):
  x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4 // groups, 12), np.float32)
  conv = lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
  expected = 2 * (2 * 4 * 4 * 12) * 9 * 4 // groups
  assert compiled_flops(conv, x, kernel) == expected
  # The gradients of input and kernel: zeros between the strides do not count, padding does.
  both = compiled_flops(jax.grad(lambda *each: conv(*each).sum(), argnums=(0, 1)), x, kernel)
  assert 2 * expected <= both <= 3 * expected


def test_a_loop_counts_as_often_as_it_turns():
  x, steps = np.ones((4, 4), np.float32), np.ones((6, 4, 4), np.float32)
  assert compiled_flops(lambda x, steps: jax.lax.scan(lambda x, y: (jnp.sin(x @ y), None), x, steps)[0],
                        x, steps) == 6 * 2 * 4**3
