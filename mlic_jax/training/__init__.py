"""Training: objective (losses), one step (step, parallel), checkpoints, and the loop."""
