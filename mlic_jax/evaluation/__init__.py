"""How good a codec is: from real files, beside conventional codecs and published curves, as tables and as a page."""
