"""Image sets made of arrays, for tests that evaluate a few images."""
from mlic_jax.evaluation import dataset


def photographs(*images):
  named = [(f"photo{i}.png", image) for i, image in enumerate(images)]
  return dataset.Dataset("photos", len(named), lambda: iter(named))
