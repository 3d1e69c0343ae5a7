"""One model that writes steps: the engine, its KV cache, sampling, and what runs the model."""
