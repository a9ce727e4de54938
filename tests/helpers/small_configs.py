"""Configurations of two models with two slices, which compile in minutes for devices that are not here."""

from configs import mlic_plus_plus, nano


def small_nano():
  c = nano.get_config()
  c.model.update(N=16, M=32, num_slices=2, widths=(32, 48), hyper_widths=(16, 16), channel_widths=(16, 16),
                 entropy_widths=(32, 16), lrp_widths=(16,))
  return c


def two_slices_of_mlic_plus_plus():
  c = mlic_plus_plus.get_config()
  c.model.update(N=32, M=32, num_slices=2, channel_widths=(32, 16), entropy_widths=(32, 16), lrp_widths=(32,))
  return c


SMALL_CONFIGS = dict(nano=small_nano, mlic_plus_plus=two_slices_of_mlic_plus_plus)
