"""eval: measure rate and distortion of checkpoints on complete files: a table, results.json, plots, report.html.

    mlic-jax eval --ckpt CKPT [CKPT ...] [--data DIR|tfds:NAME[:SPLIT]] [--out DIR] [--limit N] [--estimate]
                  [--progressive] [--skip SCALE] [--refine STEPS]

Without --data the images are the sample images of scikit-image. Conventional codecs run on the same images, and
published curves can be added. --progressive also measures the images that are decoded from the first slices of each
file; --skip and --refine evaluate each checkpoint once more, with skipped elements and with optimized latents.
docs/evaluation.md lists the files and defines every number. This module has the arguments;
mlic_jax/evaluation/session.py evaluates.

Exit status: 0; 2 for a user error; 1 for a file that decodes to another image than its encoder predicted; 130 after
Ctrl-C.
"""
import argparse

from mlic_jax.commands.arguments import (
  check_optimization,
  coder_argument,
  custom_modules_argument,
  local_path,
  nonnegative_integer,
  optimization_arguments,
  positive_integer,
  skip_argument,
  tile_argument,
)
from mlic_jax.commands.exit_codes import Interruption, UsageError
from mlic_jax.console import complain
from mlic_jax.evaluation import baselines, bd_rate, published_curves

SUMMARY = "Measure rate and distortion of checkpoints on complete files."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--ckpt", nargs="+", required=True, metavar="CKPT",
                      help="Evaluate these model directories, or the models of these training workdirs; single-rate "
                      "checkpoints of one family form one curve. Required.")
  custom_modules_argument(parser)
  parser.add_argument("--data", metavar="DIR|tfds:NAME[:SPLIT]",
                      help="Evaluate on the images of a folder or of a prepared TFDS dataset. Default: the sample "
                      "images of scikit-image.")
  parser.add_argument("--out", type=local_path, metavar="DIR",
                      help="Write all results to DIR. Default: out/NAME, after the first checkpoint.")
  parser.add_argument("--limit", type=positive_integer, metavar="N",
                      help="Evaluate on the first N images. Default: all.")
  parser.add_argument("--qualities", type=_numbers, metavar="Q[,Q...]",
                      help='Evaluate variable-rate checkpoints at these qualities, as in "1,2.5,6". Default: all rate '
                      "points.")
  parser.add_argument("--estimate", action="store_true",
                      help="Estimate rates by the likelihoods of the model, without coding. Default: off.")
  coder_argument(parser, "tfc if it is installed, or else numba")
  parser.add_argument("--progressive", action="store_true",
                      help="Also measure PSNR and MS-SSIM over the bytes received, after 0, 1, ..., all slices of each "
                      "file. Default: off.")
  skip_argument(parser, "Also evaluate each checkpoint with skip coding of latent elements whose predicted scale is at "
                        "most SCALE. Default: off.")
  tile_argument(parser, "Also evaluate each checkpoint with images in tiles of at most PIXELS pixels a side, a "
                        "multiple of 64. Default: off.")
  optimization_arguments(parser, "Also evaluate each checkpoint with latent optimization for each image and quality, "
                                 "for STEPS steps or SECONDS seconds, such as 100 or 50s. Default: off.")
  parser.add_argument("--baselines", type=_names, default=baselines.DEFAULT, metavar="NAMES",
                      help=f"Compare with these conventional codecs: all, none, or some of "
                      f"{','.join(baselines.BASELINES)}. Default: {','.join(baselines.DEFAULT)}.")
  parser.add_argument("--published", metavar="DATASET[:NAMES]",
                      help=f"Add published curves on {', '.join(published_curves.DATASETS)}: a selection, or the "
                      'named ones, as in "kodak:MLIC++,VTM-17.0" or "kodak:all". Default: none.')
  parser.add_argument("--anchor", metavar="CURVE", help="Compute BD-rates against this curve. Default: JPEG 4:2:0.")
  parser.add_argument("--bd-method", choices=bd_rate.BD_METHODS, default=bd_rate.BD_METHOD,
                      help="Interpolate curves by this method for BD-rates; the papers use cubic. Default: "
                      "%(default)s.")
  parser.add_argument("--report-images", type=nonnegative_integer, default=6, metavar="N",
                      help="Show N images in report.html. Default: %(default)s.")
  parser.add_argument("--resume", action="store_true",
                      help="Continue an evaluation: results in OUT/measurements.jsonl are not measured again. Default: "
                      "off.")
  parser.add_argument("--workers", type=nonnegative_integer, default=0, metavar="N",
                      help="Compute baselines and metrics in N processes. Default: 0, all in the main process.")


def run(args: argparse.Namespace) -> None:
  if args.progressive and args.estimate:
    raise UsageError("--progressive needs files, and --estimate writes none; wanted one of the two")
  check_optimization(args)
  from mlic_jax.commands.codec_io import CompilationNotice
  from mlic_jax.evaluation import session
  try:
    session.evaluate(args, warn=lambda line: complain(f"warning: {line}"), compilation_notice=CompilationNotice)
  except KeyboardInterrupt as error:
    raise Interruption.of(error, "the same command with --resume continues") from None


def _names(text: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
  try:
    numbers = sorted({float(each) for each in text.split(",")})
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r}; wanted numbers, as "1,2.5,6"') from None
  return tuple(int(each) if each.is_integer() else each for each in numbers)
