"""What `evaluate` left in a run folder, typed: RUN/evaluations/DATA/STEM.json and the pictures beside it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpc_recolor.config_file import explain
from hpc_recolor.runtime.errors import UserError

FORMAT = 1
FIX = "remove it and evaluate again"


class Record(BaseModel):
    """A part of an evaluation file. Keys that are not known here are left to who knows them."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Protocol(Record):
    """What was measured, and how."""

    data: str
    images: int = Field(ge=0)
    fingerprint: str
    size: int
    fit: str
    color: str
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    images_seen: int = 0
    epoch: float | None = Field(None, allow_inf_nan=False)
    weights: str = "ema"
    round_trip: str = ""
    formulas: dict[str, str] = {}
    versions: dict[str, str | None] = {}
    lpips_weights: dict[str, Any] | None = None
    fid_weights: dict[str, Any] | None = None


class Photo(Record):
    """One measured photograph. Its metrics are read by `value`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    number: int = Field(ge=0)
    name: str
    picture: bool = False

    def value(self, key: str) -> float | None:
        """A metric of this photograph; None if it is not there or not finite."""
        return finite((self.model_extra or {}).get(key))


class Content(Record):
    """An evaluation file."""

    format: Literal[1]
    protocol: Protocol
    losses: dict[str, float | None] = {}
    rows: dict[str, dict[str, float | None]] = {}
    images: tuple[Photo, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint, measured. file: its JSON."""

    file: Path
    content: Content

    @property
    def protocol(self) -> Protocol:
        return self.content.protocol

    @property
    def photos(self) -> tuple[Photo, ...]:
        return self.content.images

    @property
    def raw(self) -> bool:
        """Whether the weights are those of the last step, not their moving average."""
        return self.file.stem.endswith("-raw")

    @property
    def comparable_by(self) -> tuple[Any, ...]:
        """Numbers of two evaluations can be compared if this is equal."""
        return (self.protocol.size, self.protocol.fit, self.protocol.fingerprint, self.protocol.images)

    @property
    def epoch_text(self) -> str:
        """`epoch 15`, or `epoch 15, raw weights`; `9,000 images seen` where the epoch is not known."""
        epoch, seen = self.protocol.epoch, self.protocol.images_seen
        when = f"{seen:,} images seen" if epoch is None else f"epoch {epoch:.4g}"
        return f"{when}{', raw weights' if self.raw else ''}"

    def value(self, row: str, metric: str) -> float | None:
        """A mean over the images; None if it is not there or not finite."""
        return finite(self.content.rows.get(row, {}).get(metric))

    def picture(self, photo: Photo, kind: Literal["model", "original", "gray"]) -> Path | None:
        """The file of a photograph's picture, or None if none was kept."""
        folder = self.file.with_suffix("") if kind == "model" else self.file.parent / kind
        file = folder / f"{photo.number:06d}.png"
        return file if photo.picture and file.is_file() else None


def finite(value: object) -> float | None:
    """A number as it is; anything else, and what is not finite, as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_evaluations(run: Path) -> dict[str, tuple[Evaluation, ...]]:
    """All finished evaluations of a run by the name of their data, the least trained first; averaged before raw.

    Raises UserError, with the file named, if one cannot be read.
    """
    found: dict[str, tuple[Evaluation, ...]] = {}
    for folder in sorted(path for path in (run / "evaluations").glob("*") if path.is_dir()):
        files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
        read = [Evaluation(file, _read(file)) for file in files]
        if read:
            found[folder.name] = tuple(sorted(read, key=lambda one: (one.protocol.images_seen, one.raw)))
    return found


def _read(file: Path) -> Content:
    try:
        return Content.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"evaluation {file} cannot be read ({error.strerror}); {FIX}") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            raise UserError(
                f"evaluation {file}: format={first['input']}: this version reads {FORMAT}; evaluate again with it"
            ) from None
        reason = first["msg"] if first["type"] == "json_invalid" else explain(error, "its content", ["format"])
        raise UserError(f"evaluation {file} is damaged: {reason}; {FIX}") from None
