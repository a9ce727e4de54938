"""mlic_jax: the MLIC family of learned image codecs in JAX and Flax.

    codec = mlic_jax.Codec.load("checkpoints/nano")
    blob = codec.encode(image, quality=3)            # a PIL image, or an array (H, W, 3) uint8 -> bytes
    image = codec.decode(blob)

    model = mlic_jax.build(mlic_jax.CodecConfig())   # MLIC++ as in the paper
    variables = model.init(key, x)
    out = model.apply(variables, x)                  # x_hat, y_hat, y_bits, z_bits
"""

import importlib

__version__ = "0.1.0"
_PUBLIC = {
    "Codec": "mlic_jax.coding.codec",
    "BitstreamError": "mlic_jax.coding.bitstream",
    "CodecConfig": "mlic_jax.config",
    "build": "mlic_jax.model.mlic",
    "entropy_model": "mlic_jax.model",
    "load_image": "mlic_jax.data.image_io",
    "load_model": "mlic_jax.coding.checkpoint_io",
    "open_strips": "mlic_jax.data.image_strips",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  """Import public names on first use, so that `import mlic_jax` is fast and training imports no range coder."""
  if name not in _PUBLIC:
    raise AttributeError(f"mlic_jax has no {name!r}; it has {__all__}")
  module = importlib.import_module(_PUBLIC[name])
  return getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{_PUBLIC[name]}.{name}")
