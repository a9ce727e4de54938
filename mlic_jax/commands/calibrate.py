"""calibrate: fit the shapes of a distribution to images, without training."""
import argparse

from mlic_jax.commands.arguments import any_path, custom_modules_argument, positive_integer
from mlic_jax.console import say

SUMMARY = "Fit shape and scale of the distribution of each channel to images, which makes files smaller."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("ckpt", type=any_path, metavar="CKPT",
                      help="Calibrate this model directory, or the model of this training workdir. Required.")
  parser.add_argument("--data", type=any_path, required=True, metavar="IMAGES",
                      help="Fit to the images in this folder. Required.")
  parser.add_argument("--out", type=any_path, required=True, metavar="DIR",
                      help="Write this model directory, which must not exist yet. Required.")
  parser.add_argument("--crop-size", type=positive_integer, default=256, metavar="N",
                      help="Use the NxN pixels in the middle of each image; smaller images are left out. "
                      "Default: %(default)s.")
  parser.add_argument("--limit", type=positive_integer, default=100, metavar="N",
                      help="Fit to N images, spread evenly over the folder. Default: %(default)s.")
  custom_modules_argument(parser)


def run(args: argparse.Namespace) -> None:
  from mlic_jax.coding import calibration
  from mlic_jax.coding.checkpoint_io import CheckpointError, load_model, save_model
  from mlic_jax.runtime import compilation_cache
  if args.out.exists():
    raise CheckpointError(f"{args.out}: already exists; wanted a new directory")
  model = load_model(args.ckpt, allow_custom_modules=args.allow_custom_modules)
  calibration.calibrated_config(model.config)   # refuses an unsuitable model before the work
  compilation_cache.enable()
  crops = center_crops(args.data, args.crop_size, args.limit)
  found = calibration.fit(model, crops)
  config, variables = calibration.calibrated(model, found)
  record = {"images": len(crops), "crop_size": args.crop_size}
  save_model(args.out, config, variables, (model.training or {}) | {"calibration": record})
  for rate, (before, after) in enumerate(zip(found.before, found.after), 1):
    say(f"rate {rate}: {100 * (after / before - 1):+.2f} % bits of y on the {len(crops)} images of the fit")
  say(f"wrote {args.out}; it does not decode files of {args.ckpt}")


def center_crops(data, size: int, limit: int) -> list:
  """Returns crops (size, size, 3) uint8 of up to `limit` images, spread evenly over a folder. ConfigError for none."""
  from mlic_jax.data.image_io import list_images, load_image
  from mlic_jax.errors import ConfigError
  paths, crops = list_images(data), []
  spread = sorted(range(len(paths)), key=lambda i: i * 0.6180339887 % 1)   # any prefix is spread evenly
  for i in spread:
    image = load_image(paths[i])
    top, left = ((side - size) // 2 for side in image.shape[:2])
    if min(top, left) >= 0:
      crops.append(image[top:top + size, left:left + size])
    if len(crops) == limit:
      break
  if not crops:
    raise ConfigError(f"{data}: none of {len(paths)} images has {size}x{size} pixels; wanted a smaller --crop-size")
  return crops
