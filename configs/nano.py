"""nano: a small variable-rate codec that trains and codes on two CPU cores. One checkpoint is a whole RD curve.

    python train.py --config configs/nano.py --workdir runs/nano --config.data_dir=PHOTOGRAPHS
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Every field that training reads; a value can be changed with --config.FIELD=VALUE."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.distributed = False            # True: several processes, connected by jax.distributed
  c.peer_timeout = 60.0            # seconds after which a process that is not heard of is lost, and ends the others

  c.model = dict(                  # see CodecConfig in mlic_jax/config.py
      transforms="unshuffled", N=64, M=256, num_slices=4, widths=(192, 256), hyper_widths=(48, 64),
      contexts=("local_attention", "global_intra_linear", "global_inter_linear", "channel"),
      context_ratio=1, channel_widths=(48, 32), entropy_widths=(128, 128), lrp_widths=(32,),
      window_size=3, num_rates=6, scan_unroll=0, options={})

  # Photographs: a folder, tfds:NAME[:SPLIT], or several with weights: FOLDER*0.7,tfds:clic*0.3
  c.data_dir = ""
  c.tfds_dir = ""                  # where TFDS datasets lie; "": TFDS's own place
  c.eval_dir = ""                  # "": one in holdout_every photographs of data_dir is held out instead
  c.holdout_every = 24             # which, is decided by a hash of the file's name
  c.crop_size = 128                # pixels, a multiple of 64; photographs with a smaller side are left out
  c.crop_schedule = ()             # larger ones later: ((1_200_000, 512),) reads 512 after 1,200,000 steps
  c.downscale = "all"              # which photographs are made smaller: "all", or "lossy" ones (JPEG, lossy WebP)
  c.downscale_probability = 0.5    # of making a photograph smaller before the crop
  c.flip = True                    # left to right, half of the crops
  c.batch_size = 16                # of all devices together
  c.data_threads = 1               # that read and crop
  c.data_workers = 0               # processes that do it instead of the threads, for large photographs
  c.cache_gigabytes = 1.0          # decoded photographs kept in memory, 0: none

  # Objective: bpp + lmbda * 255**2 * mse; every sample draws one of the rates.
  c.distortion = "mse"
  c.lmbdas = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483)  # of quality 1, 2, ...; a single-rate model has c.lmbda
  c.rate_weighting = 0.45          # a sample's loss counts lmbda**-0.45: all rates about equally then; 0: as they are
  c.partial_probability = 0.0      # of a sample whose last slices do not arrive, as in progressive decoding
  c.init_from = ""                 # model directory to start from, such as one of another lambda
  c.teacher = ""                   # model directory of a larger codec, whose reconstructions are distilled
  c.distillation_weight = 0.5      # of the teacher's reconstruction in the target, 0 to 1

  # Optimiser
  c.num_steps = 1_000_000          # as far as there is time for: schedule "wsd" is ended by decay_start
  c.optimizer = "muon"             # for the kernels of convolutions, Adam for the rest; or "adam"
  c.muon_learning_rate = 2e-3      # after warmup_steps; the schedule of learning_rate in proportion
  c.learning_rate = 5e-4           # after warmup_steps
  c.warmup_steps = 300
  c.schedule = "wsd"               # constant, and from decay_start on a straight line to final_learning_rate at
  c.decay_start = 0                # num_steps (0: not yet); or "cosine"; or "step" with decay_steps, decay_factors
  c.final_learning_rate = 0.0
  c.aux_learning_rate = 1e-3       # of the quantiles of z's density
  c.grad_clip = 1.0                # global norm; 0: not clipped
  c.ema_decay = 0.999              # of the average of the parameters that is evaluated and exported; 0: none
  c.accumulate_steps = 1           # parts of a batch, one after the other: less memory, the same gradient
  c.bfloat16_transforms = False    # g_a and g_s, for accelerators; the entropy path is float32 always
  c.entropy_precision = "highest"  # of its products while training; on accelerators "high" and "default" are quicker
  c.remat = False                  # compute again instead of keeping: less memory, more time

  # Figures, checkpoints, evaluation; all in steps.
  c.log_every = 50
  c.checkpoint_every = 300
  c.keep_checkpoints = 2
  c.eval_every = 900
  c.eval_images = 24               # of the held-out ones, 0: all
  c.eval_crop_size = 256           # pixels, from the middle
  c.eval_batch_size = 4            # of all devices together
  c.eval_pictures = 2              # shown in TensorBoard, with their reconstructions
  c.profile_steps = ""             # "a:b": a trace of the steps a to b - 1
  return c
