"""Images as thumbnails inside the page, each stored once."""

import base64
import hashlib
from io import BytesIO
from pathlib import Path

from PIL import Image, features

from hpc_recolor.runtime.errors import UserError, cannot_read

# (largest number of photographs in a grid, side of a thumbnail [pixels], quality): a page stays a few MB.
SIZES = ((100, 128, 84), (1000, 64, 60), (10**9, 48, 45))


FIX = "remove its evaluation and evaluate again"


class Thumbnails:
    """Thumbnails by number, in the order they were added. Equal files are one thumbnail."""

    def __init__(self, photos: int) -> None:
        """photos: the number of photographs in the largest grid."""
        self.side_px, self.quality = next((side, quality) for up_to, side, quality in SIZES if photos <= up_to)
        self.format = "WEBP" if features.check("webp") else "JPEG"
        self.base64: list[str] = []
        self._by_file: dict[Path, int] = {}
        self._by_content: dict[bytes, int] = {}

    @property
    def prefix(self) -> str:
        """The start of a data URL, which a thumbnail's base64 text completes."""
        return f"data:image/{self.format.lower()};base64,"

    def add(self, file: Path | None) -> int | None:
        """The number of an image's thumbnail, None for None. Raises UserError if the file is not an image."""
        if file is None:
            return None
        known = self._by_file.get(file)
        if known is None:
            known = self._by_file[file] = self._add(file)
        return known

    def _add(self, file: Path) -> int:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise cannot_read(f"image {file}", error, FIX) from None
        digest = hashlib.sha256(content).digest()
        if digest not in self._by_content:
            self._by_content[digest] = len(self.base64)
            self.base64.append(base64.b64encode(self._shrink(file, content)).decode())
        return self._by_content[digest]

    def _shrink(self, file: Path, content: bytes) -> bytes:
        small = BytesIO()
        try:
            with Image.open(BytesIO(content)) as image:
                rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).replace(str(file), file.name)
            raise UserError(f"image {file}", f"damaged ({reason})", FIX) from None
        rgb.thumbnail((self.side_px, self.side_px), Image.Resampling.LANCZOS)
        rgb.save(small, self.format, quality=self.quality)
        return small.getvalue()
