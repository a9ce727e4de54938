"""Tests of blocks and contexts without recorded arrays, against short NumPy references in float64."""
import jax
import numpy as np
import pytest
from helpers.in_numpy import in_numpy
from scipy.special import erf, expit

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts
from mlic_jax.model.channel_reweighting import Reweighting
from mlic_jax.model.checkerboard import anchor_mask
from mlic_jax.model.layers import Gate, PartialConvBlock
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.transforms.elic import AttentionBlock, Bottleneck
from mlic_jax.model.transforms.token_mixing import TokenMixing

B, H, W, C = 2, 4, 6, 8


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(module, *args):
  """Parameters of order 1 everywhere, so that no branch is silent: scales and biases, too."""
  with without_initializers():
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
  leaves, treedef = jax.tree.flatten(shapes)
  fan_in = lambda shape: np.prod(shape[:-1]) if len(shape) == 4 else 1
  return treedef.unflatten([normal(i, *leaf.shape) / np.sqrt(fan_in(leaf.shape)) for i, leaf in enumerate(leaves)])


def conv(x, p):
  """A convolution of stride 1 with zeros around, as the sum over taps."""
  kernel, (_, h, w, _) = np.asarray(p["kernel"], np.float64), x.shape
  size, pad = kernel.shape[0], (kernel.shape[0] - 1) // 2
  around = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  taps = ((around[:, i:i + h, j:j + w], kernel[i, j]) for i in range(size) for j in range(size))
  return sum(seen @ tap if tap.shape[0] > 1 or x.shape[-1] == 1 else seen * tap[0] for seen, tap in taps) + p["bias"]


def norm(x, p):
  """LayerNorm over the channels of a position."""
  centered = x - x.mean(-1, keepdims=True)
  return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


gelu = lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))
relu = lambda x: np.maximum(x, 0)


def softmax(x, axis):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def gate(u, p):
  """sigmoid(1x1(gelu(3x3 depthwise(gelu(1x1(u)))))) u (MLICv2, section 3.3)."""
  return expit(conv(gelu(conv(gelu(conv(u, p["expand"])), p["depthwise"])), p["reduce"])) * u


def token_mixing(x, p):
  """MLICv2, section 3.3: x + mixer(norm(x)), then x + gate(norm(x))."""
  u = norm(x, p["norm1"])
  u = u + conv(conv(gelu(conv(u, p["expand"])), p["depthwise"]), p["reduce"])
  x = x + conv(conv(u, p["mix"]), p["out"])
  return x + gate(norm(x, p["norm2"]), p["gate"])


def reweighting(c, p):
  """MLICv2, section 3.4.2, with the cosines of Restormer: channel i takes softmax_j(t cos(q_i, k_j)) of the values."""
  u = norm(c, p["norm"])
  q, k, v = (conv(u, p[name]).reshape(B, H * W, C) for name in ("queries", "keys", "values"))
  mixed = np.zeros((B, H * W, C))
  for b in range(B):
    cosine = np.array([[q[b, :, i] @ k[b, :, j] / np.linalg.norm(q[b, :, i]) / np.linalg.norm(k[b, :, j])
                        for j in range(C)] for i in range(C)])
    mixed[b] = v[b] @ softmax(p["temperature"] * cosine, 1).T
  out = norm(conv(mixed.reshape(c.shape), p["out"]), p["norm_out"])
  return c + out + gate(out, p["gate"])


def bottleneck(x, p):
  """He et al., CVPR 2022: a residual bottleneck without an activation behind the sum."""
  return x + conv(relu(conv(relu(conv(x, p["reduce"])), p["conv"])), p["expand"])


def elic_attention(x, p):
  """Cheng et al., CVPR 2020, section 3.3: x + trunk(x) sigmoid(1x1(branch(x)))."""
  trunk = branch = x
  for i in range(3):
    trunk, branch = relu(bottleneck(trunk, p[f"trunk{i}"])), relu(bottleneck(branch, p[f"branch{i}"]))
  return x + trunk * expit(conv(branch, p["gate"]))


def partial_block(x, p):
  """Li et al., ICCV 2025: a 3x3 convolution of a quarter of the channels, then 1x1 to 4 C and back."""
  out = np.concatenate([conv(x[..., :C // 4], p["partial"]), x[..., C // 4:]], -1)
  out = conv(out, p["expand"])
  return x + conv(np.where(out > 0, out, 0.01 * out), p["reduce"])


@pytest.mark.parametrize("module, reference", [
    (Gate(2), gate), (TokenMixing(2), token_mixing), (TokenMixing(1), token_mixing), (Reweighting(), reweighting),
    (Bottleneck(), bottleneck), (AttentionBlock(), elic_attention), (PartialConvBlock(), partial_block)],
    ids=lambda each: type(each).__name__ if hasattr(each, "name") else each.__name__)
def test_a_block_is_its_formula(module, reference):
  x = normal(100, B, H, W, C)
  params = random_params(module, x)
  np.testing.assert_allclose(in_numpy(module.apply)(params, x), reference(x, params["params"]), rtol=2e-4, atol=2e-4)


# --- contexts ---------------------------------------------------------------------------------

CONFIG = CodecConfig(N=8, M=24, num_slices=3, context_ratio=1, channel_widths=(8,), entropy_widths=(8,))
ANCHORS = np.asarray(anchor_mask(H, W))


def inputs(k):
  cs = CONFIG.slice_channels
  live = np.arange(CONFIG.M) < k * cs
  decoded = normal(1, B, H, W, CONFIG.M) * live
  anchor = normal(2, B, H, W, cs) * ANCHORS[..., None]
  previous = decoded[..., max(k - 1, 0) * cs:][..., :cs]
  return contexts.ContextInputs(k, normal(3, B, H, W, 2 * CONFIG.M), decoded, live, previous, anchor)


def applied(context, params, given):
  return in_numpy(lambda params: context.apply(params, given))(params)


def project(x, p):
  return conv(conv(x, p["pointwise"]), p["depthwise"])


def heads(rows):
  """(n, C) -> two heads of C/2."""
  return np.split(rows, 2, axis=-1)


def after_attention(x, p):
  """5x5, plus 1x1, depthwise 3x3, 1x1; then the non-anchors, row by row."""
  x, mlp = conv(x, p["reprojection"]), p["mlp"]
  x = x + conv(gelu(conv(gelu(conv(x, mlp["expand"])), mlp["depthwise"])), mlp["reduce"])
  return x[:, ~ANCHORS].reshape(B, H, W // 2, -1)


def test_the_context_of_the_adjacent_slice_is_its_formula():
  """Anchors of slice k ask the anchors of slice k - 1 for its non-anchors; the answers go to the non-anchors."""
  given, context = inputs(2), contexts.make_context("global_inter_adjacent", CONFIG)
  params = random_params(context, given)
  p = params["params"]
  q = project(given.anchor * ANCHORS[..., None], p["queries"])[:, ANCHORS]
  k = project(given.previous * ANCHORS[..., None], p["keys"])[:, ANCHORS]
  v = project(given.previous * ~ANCHORS[..., None], p["values"])[:, ~ANCHORS]
  answers = np.stack([np.concatenate([softmax(qh @ kh.T / np.sqrt(qh.shape[-1]), 1) @ vh for qh, kh, vh in zip(
      heads(q[b]), heads(k[b]), heads(v[b]))], -1) for b in range(B)])
  # Packed position by packed position: an anchor's answer is for the non-anchor of the same pair of columns.
  x = np.zeros((B, H, W, q.shape[-1]))
  for b in range(B):
    for row in range(H):
      for pair in range(W // 2):
        columns = [2 * pair, 2 * pair + 1]
        target = next(column for column in columns if not ANCHORS[row, column])
        x[b, row, target] = answers[b, row * (W // 2) + pair]
  np.testing.assert_allclose(applied(context, params, given), after_attention(x, p), rtol=2e-4, atol=2e-4)


def test_the_context_that_the_hyperprior_guides_is_its_formula():
  """Linear attention in both directions over the half of the hyper features about means (MLICv2, section 3.4.1)."""
  given, context = inputs(0), contexts.make_context("global_intra_hyper", CONFIG)
  params = random_params(context, given)
  p, guide = params["params"], given.hyper[..., CONFIG.M:]
  q, k, v = (project(guide, p[name]) for name in ("queries", "keys", "values"))
  x = np.zeros(q.shape)
  for asking in (ANCHORS, ~ANCHORS):
    for b in range(B):
      x[b, asking] = np.concatenate([softmax(qh, 1) @ (softmax(kh, 0).T @ vh) for qh, kh, vh in zip(
          heads(q[b][asking]), heads(k[b][~asking]), heads(v[b][~asking]))], -1)
  out = conv(x, p["reprojection"])
  wanted = out + gate(norm(out, p["norm"]), p["gate"])
  np.testing.assert_allclose(applied(context, params, given), wanted, rtol=2e-4, atol=2e-4)
