"""How good a codec is: distortions, rate-distortion figures of a checkpoint, JPEG and WebP, the plot."""
