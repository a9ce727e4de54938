"""Evaluation of codecs on complete files, with conventional codecs and published curves, as tables and a report."""
