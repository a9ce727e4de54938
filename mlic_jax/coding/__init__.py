"""From latents to bytes and back: tables, the range coder, the file format, and the codec that joins them."""
