"""What the server takes at most."""

from dataclasses import dataclass

from hpc_recolor.data.photo import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a photograph's file. max_pixels: of a photograph. max_waiting: photographs that are received,
    waiting, being colored or sent at the same time; one is colored at a time. held_bytes: of all their files.
    upload_s: for a photograph to arrive [s]. page_photos: on one page at the same time."""

    max_bytes: int = 100_000_000
    max_pixels: int = MAX_PIXELS
    max_waiting: int = 32
    upload_s: float = 120.0
    page_photos: int = 100

    @property
    def held_bytes(self) -> int:
        """So that a few of the largest photographs fit, and many of the usual size."""
        return 4 * self.max_bytes
