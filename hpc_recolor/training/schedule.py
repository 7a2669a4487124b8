"""The learning rate over a run."""


def learning_rate(lr: float, images_seen: int, images_total: int, constant: float) -> float:
    """Constant for a share of the run, then linear to zero, as pix2pix does; the clock is images seen."""
    left = 1 - images_seen / images_total
    return lr * min(1.0, max(0.0, left) / (1 - constant)) if constant < 1 else lr
