"""The plan and the models that are open."""
