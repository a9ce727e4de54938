"""The architectures of the papers, from configs/."""
from mlic_jax.training.config_schema import load_config, model_config

PAPER_MODELS = {name: model_config(load_config(name)) for name in ("mlic", "mlic_plus", "mlic_plus_plus", "mlic_v2")}
