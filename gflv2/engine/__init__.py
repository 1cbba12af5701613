"""Training, evaluation and prediction; each module is imported by its own name and needs the extra ``train``."""
