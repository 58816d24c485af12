"""Making images with a loaded model: batches, folders of them, and pictures of how they come about."""
