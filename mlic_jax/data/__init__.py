"""Images in and out, and what training reads: sources, images, crops, batches."""
