"""Pictures in and out, and what training reads: sources, photographs, crops, batches."""
