"""Making images with a loaded model: batches, folders of them, and looks at how they come about."""
