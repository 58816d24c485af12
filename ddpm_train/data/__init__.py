"""Images: sources -> cache (uint8) -> order (pure) -> loader."""
