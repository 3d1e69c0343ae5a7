"""From collected steps to a trained head."""
