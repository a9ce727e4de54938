"""The fields that every training reads and that all models of this project share.

`configs/nano.py` and `configs/mlic_plus_plus.py` start from these and add their architecture, data, objective,
optimizer and schedule. This file is not a config of its own and is not listed as one.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the shared fields. Change values on the command line with --config.FIELD=VALUE."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.distributed = False            # True: several processes, connected by jax.distributed
  c.peer_timeout = 60.0            # seconds of silence after which a process counts as lost and the run ends

  # Training images: a folder, tfds:NAME[:SPLIT], or a weighted mixture: FOLDER*0.7,tfds:clic*0.3
  c.data_dir = ""
  c.tfds_dir = ""                  # folder of the TFDS datasets; "": the default of TFDS
  c.eval_dir = ""                  # held-out images; "": one in holdout_every images of data_dir is held out
  c.holdout_every = 24             # a hash of the file name decides which images are held out
  c.downscale = "all"              # images that may be downscaled: "all", or "lossy" (JPEG, lossy WebP)
  c.downscale_probability = 0.5    # probability that an image is downscaled before it is cropped
  c.flip = True                    # mirror half of the crops left to right
  c.data_threads = 1               # threads that read and crop
  c.crop_schedule = ()             # larger crops later: ((1_200_000, 512),) uses 512 pixels after 1,200,000 steps

  # Objective
  c.partial_probability = 0.0      # probability that a sample lacks its last slices, as in progressive decoding
  c.init_from = ""                 # model directory with initial parameters, for example of another lambda
  c.teacher = ""                   # model directory of a larger codec whose reconstructions are distilled
  c.distillation_weight = 0.5      # weight of the teacher's reconstruction in the target, 0 to 1

  # Optimization
  c.aux_learning_rate = 1e-3       # learning rate of the quantiles of z's density
  c.grad_clip = 1.0                # maximum global norm of the gradient; 0: no clipping
  c.accumulate_steps = 1           # a batch is split into this many parts: less memory, the same gradient
  c.bfloat16_transforms = False    # g_a and g_s in bfloat16, for accelerators; the entropy model is always float32
  # Matmul precision of the entropy model in training. "high_gradients", "high" and "default" are faster.
  c.entropy_precision = "highest"
  c.remat = False                  # recompute activations in the backward pass: less memory, more time
  # Slices in an iteration of the compiled loop. 0: all on CPU, 1 elsewhere. The number of slices is fastest on TPUs,
  # too, but compiles for three times as long there.
  c.scan_unroll = 0

  # Checkpoints and evaluation
  c.keep_checkpoints = 2           # number of newest checkpoints to keep
  c.eval_crop_size = 256           # pixels, cropped from the center
  c.eval_pictures = 2              # images with their reconstructions in TensorBoard
  c.profile_steps = ""             # "a:b": write a profiler trace of the steps a to b - 1
  return c
