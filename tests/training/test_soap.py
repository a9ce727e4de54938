"""Tests of SOAP: the step of its paper for kernels of any size, and that of Adam without bases."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlic_jax.training.soap import BETA1, BETA2, EPSILON, scale_by_soap


def gradients(shape, steps, seed=0):
  """(steps, *shape) float32, whose rows and columns are correlated, and stay so."""
  rng = np.random.default_rng(seed)
  rows, columns = rng.normal(size=(shape[-2],) * 2), rng.normal(size=(shape[-1],) * 2)
  return np.float32([rows @ rng.normal(size=shape) @ columns for _ in range(steps)])


def steps_of(transformation, of_steps):
  """Returns the updates of the transformation for the gradients of each step."""
  state, found = transformation.init(jax.tree.map(lambda g: g[0], of_steps)), []
  update = jax.jit(transformation.update)
  for i in range(len(jax.tree.leaves(of_steps)[0])):
    step, state = update(jax.tree.map(lambda g, i=i: jnp.asarray(g[i]), of_steps), state)
    found.append(step)
  return found


def by_hand(of_steps, refresh_every):
  """Returns the algorithm for one matrix, line by line as in the paper's algorithm 3, in float64."""
  rows, columns = of_steps[0].shape
  left, right, mean, square = np.zeros((rows, rows)), np.zeros((columns, columns)), 0.0, np.zeros((rows, columns))
  found, q_left, q_right = [], None, None
  for t, g in enumerate(of_steps.astype(np.float64), start=1):
    if t > 1:
      mean, turned = BETA1 * mean + (1 - BETA1) * g, q_left.T @ g @ q_right
      square = BETA2 * square + (1 - BETA2) * turned**2
      direction = q_left.T @ mean @ q_right / (1 - BETA1**(t - 1))
      found.append(q_left @ (direction / (np.sqrt(square / (1 - BETA2**(t - 1))) + EPSILON)) @ q_right.T)
    else:
      found.append(np.zeros_like(g))
    left, right = BETA2 * left + (1 - BETA2) * g @ g.T, BETA2 * right + (1 - BETA2) * g.T @ g
    if t == 1:
      q_left, q_right = (np.linalg.eigh(each)[1][:, ::-1] for each in (left, right))
    elif t % refresh_every == 0:
      for side, (q, covariance) in enumerate(((q_left, left), (q_right, right))):
        order = np.argsort(-np.diag(q.T @ covariance @ q))
        square = np.take(square, order, axis=side)
        q[...] = np.linalg.qr(covariance @ q[:, order])[0]
  return found


def test_steps_are_those_of_the_paper():
  of_steps = gradients((6, 6), 17)             # square: all eigenvalues differ from the first step on
  wanted = by_hand(of_steps, 5)
  found = steps_of(scale_by_soap(refresh_every=5), dict(kernel=of_steps.reshape(17, 1, 1, 6, 6)))
  assert not wanted[0].any() and np.abs(wanted[1]).max() > 0.5
  for step, expected in zip(found, wanted):
    np.testing.assert_allclose(step["kernel"].reshape(6, 6), expected, atol=2e-3)


def test_kernels_of_slices_and_of_one_size_are_matrices_of_their_own():
  stacked, other = gradients((2, 3, 3, 2, 4), 12), gradients((1, 1, 18, 4), 12, seed=1)
  found = steps_of(scale_by_soap(), dict(a=stacked, b=other))
  for k in range(2):
    alone = steps_of(scale_by_soap(), dict(a=stacked[:, k]))
    np.testing.assert_allclose(found[-1]["a"][k], alone[-1]["a"], atol=1e-3)
  np.testing.assert_allclose(found[-1]["b"], steps_of(scale_by_soap(), dict(b=other))[-1]["b"], atol=1e-3)


def test_a_turned_gradient_gives_the_turned_step_which_adam_does_not():
  of_steps, rng = gradients((6, 6), 8), np.random.default_rng(1)
  left, right = (np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32) for _ in range(2))
  kernels = lambda matrices: dict(kernel=matrices.reshape(-1, 1, 1, 6, 6))
  for transformation, holds in ((scale_by_soap(), True), (optax.scale_by_adam(), False)):
    plain = np.asarray(steps_of(transformation, kernels(of_steps))[-1]["kernel"]).reshape(6, 6)
    turned = np.asarray(steps_of(transformation, kernels(left @ of_steps @ right))[-1]["kernel"]).reshape(6, 6)
    assert np.allclose(left @ plain @ right, turned, atol=0.02) == holds


@pytest.mark.parametrize("side_max, turned", [(0, ()), (4, (2,)), (9, (1, 2))])
def test_a_side_that_is_too_long_keeps_its_basis(side_max, turned):
  of_steps = gradients((9, 4), 6)
  state = scale_by_soap(side_max=side_max).init(dict(kernel=jnp.zeros((1, 1, 9, 4))))
  assert [basis.shape[1] for basis in state.groups["9 x 4"].bases] == [{1: 9, 2: 4}[side] for side in turned]
  found = steps_of(scale_by_soap(side_max=side_max), dict(kernel=of_steps.reshape(6, 1, 1, 9, 4)))
  if not turned:
    adam = steps_of(optax.scale_by_adam(BETA1, BETA2), of_steps[1:])
    np.testing.assert_allclose(found[-1]["kernel"][0, 0], adam[-1], rtol=1e-4)
