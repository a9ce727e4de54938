"""The codec and its parts: CDF tables, range coders, file format, rate control, model directories."""
