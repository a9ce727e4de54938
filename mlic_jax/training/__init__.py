"""Training: configs, objective, optimizers, training step, data parallelism, checkpoints and the loop."""
