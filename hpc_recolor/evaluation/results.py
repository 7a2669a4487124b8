"""Evaluations on disk: what is in a file, written and read by the same model, and where it and its images lie.

RUN/evaluations/DATA/STEM.json             numbers; without it there is no evaluation
RUN/evaluations/DATA/STEM/NNNNNN.png       photograph NNNNNN as the model colored it
RUN/evaluations/DATA/original/NNNNNN.png   the photograph as the network received it
RUN/evaluations/DATA/gray/NNNNNN.png       its gray copy
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from hpc_recolor.config_file import explain
from hpc_recolor.run_folder.files import parse_json
from hpc_recolor.runtime.errors import UserError, cannot_read

FORMAT: Final = 1
# What may differ between two evaluations of one measurement.
NOT_MEASURED = frozenset({"versions", "device"})
VIVIDNESS_COST = 0.02  # twice as colorful for that is what people prefer
DAMAGED_FIX = "remove it and evaluate again"

ImageKind = Literal["model", "original", "gray"]
IMAGE_KINDS: tuple[ImageKind, ...] = ("model", "original", "gray")


def _without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


# None where it is not finite, which JSON cannot write.
Number = Annotated[float | None, AfterValidator(_without_nan)]
# File names, which need not be valid UTF-8; pydantic's own str has to be.
FileName = Annotated[str, PlainValidator(_text)]


class WeightsFile(BaseModel):
    """Weights of a network that measures. file: its name without folders."""

    model_config = ConfigDict(frozen=True, extra="allow")

    file: FileName
    sha256: str


class Protocol(BaseModel):
    """What was measured, and how. Unknown keys, of later versions, are kept: they make it another measurement.

    data: name of the folder beside `evaluations`. images: how many. fingerprint: SHA-256 of the originals' pixels.
    size: side of the images [pixels]. weights: `ema` or `raw`. mean_color_ab: of the mean-color baseline [Lab units].
    vividness: the settings of the front.
    epoch: absent where it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

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
    mean_color_ab: tuple[float, ...] = ()
    formulas: Mapping[str, str] = {}
    versions: Mapping[str, str | None] = {}
    device: str = ""
    lpips_weights: WeightsFile | None = None
    fid_weights: WeightsFile | None = None
    vividness: tuple[float, ...] = ()

    def measures_the_same_as(self, other: "Protocol") -> bool:
        """Whether another evaluation would give the same numbers: all but versions and device is equal."""
        return self.model_dump(exclude=set(NOT_MEASURED)) == other.model_dump(exclude=set(NOT_MEASURED))


class ImageScores(BaseModel):
    """One measured photograph. Its metrics are further keys, see `metric_registry.image_key`; `value` reads them.

    number: its position in the data. picture: whether its images were kept.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_without_nan)]]

    number: int = Field(ge=0)
    name: FileName
    picture: bool = False

    def value(self, key: str) -> float | None:
        """A metric of this photograph; None if it is missing or not finite."""
        return finite(self.__pydantic_extra__.get(key))


class FrontPoint(BaseModel):
    """Means over the images at one vividness: CIEDE2000 to the originals, and colorfulness [levels]."""

    model_config = ConfigDict(frozen=True)

    vividness: float
    ciede2000: Number
    colorfulness: Number


class Evaluation(BaseModel):
    """The content of an evaluation file.

    rows: by method and metric, means over the images; losses: by name. front: from faithful to vivid, if measured; runs
    of different colorfulness are compared by it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    run: str = ""
    protocol: Protocol
    losses: Mapping[str, Number] = {}
    rows: Mapping[str, Mapping[str, Number]] = {}
    front: tuple[FrontPoint, ...] = ()
    images: tuple[ImageScores, ...] = ()

    @property
    def gray_ciede2000(self) -> float | None:
        """CIEDE2000 of the gray copy, which others are related to; None if it is missing or 0."""
        return finite(self.rows.get("gray", {}).get("ciede2000")) or None

    @property
    def original_colorfulness(self) -> float | None:
        """Colorfulness of the originals [levels]; None if it is missing or 0."""
        gray = self.rows.get("gray", {})
        colorfulness, difference = finite(gray.get("colorfulness")), finite(gray.get("colorfulness_difference"))
        return None if colorfulness is None or difference is None else colorfulness - difference or None

    def to_json(self) -> bytes:
        """The file's content, which `parse` reads back to an equal evaluation."""
        unknown_epoch = {"protocol": {"epoch"}} if self.protocol.epoch is None else None
        return json.dumps(self.model_dump(exclude=unknown_epoch), indent=1, allow_nan=False).encode()


def parse(content: bytes) -> Evaluation:
    """An evaluation from the content of its file. Raises ValueError, such as ValidationError, if damaged."""
    return Evaluation.model_validate(parse_json(content))


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation and where it lies. file: its JSON."""

    file: Path
    content: Evaluation

    @property
    def protocol(self) -> Protocol:
        """What was measured, and how."""
        return self.content.protocol

    @property
    def images(self) -> tuple[ImageScores, ...]:
        """All measured photographs, by number."""
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
        return f"{when}, raw weights" if self.raw else when

    def value(self, method: str, metric: str) -> float | None:
        """A mean over the images; None if it is missing or not finite."""
        return finite(self.content.rows.get(method, {}).get(metric))

    def image_file(self, image: ImageScores, kind: ImageKind) -> Path | None:
        """The PNG of a photograph, or None if none was kept."""
        file = image_file(self.file, kind, image.number)
        return file if image.picture and file.is_file() else None


def evaluation_file(run: Path, data: str, stem: str) -> Path:
    """Where the numbers of a checkpoint on data of a name lie. run: the run folder."""
    return run / "evaluations" / data / f"{stem}.json"


def image_folder(file: Path, kind: ImageKind) -> Path:
    """Where the images of an evaluation lie. file: its JSON."""
    return file.with_suffix("") if kind == "model" else file.parent / kind


def image_file(file: Path, kind: ImageKind, number: int) -> Path:
    """Where the image of photograph `number` lies. file: the evaluation's JSON."""
    return image_folder(file, kind) / f"{number:06d}.png"


def finite(value: object) -> float | None:
    """A number as it is; anything else, and what is not finite, as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_if_whole(file: Path) -> Evaluation | None:
    """An evaluation, or None if there is none, or one that is damaged or of another format."""
    try:
        return parse(file.read_bytes())
    except (OSError, ValueError):
        return None


def read_fingerprint(file: Path) -> str | None:
    """The fingerprint of the photographs that an evaluation was measured on, even if the rest of it is damaged."""
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    protocol = content.get("protocol") if isinstance(content, dict) else None
    found = protocol.get("fingerprint") if isinstance(protocol, dict) else None
    return found if isinstance(found, str) else None


def read_evaluations(run: Path) -> dict[str, tuple[StoredEvaluation, ...]]:
    """All finished evaluations of a run by the name of their data, the least trained first; averaged before raw.

    Raises UserError, naming the file, if one cannot be read.
    """
    found: dict[str, tuple[StoredEvaluation, ...]] = {}
    for folder in sorted(path for path in (run / "evaluations").glob("*") if path.is_dir()):
        files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
        read = [StoredEvaluation(file, _read(file)) for file in files]
        if read:
            found[folder.name] = tuple(sorted(read, key=lambda one: (one.protocol.images_seen, one.raw)))
    return found


def chosen_vividness(run: Path) -> float:
    """The vividness that a run's photographs are colored with unless another is given; 1 if no front was measured.

    The most vivid setting whose CIEDE2000 is at most VIVIDNESS_COST of the gray copy's above the lowest of its front,
    in the mean over the data that the most trained checkpoint was measured on. Raises UserError as `read_evaluations`
    does.
    """
    measured = [one.content for stored in read_evaluations(run).values() for one in stored if one.content.front]
    most = max((one.protocol.images_seen for one in measured), default=0)
    costs = [costs for one in measured if one.protocol.images_seen == most and (costs := _costs_of_vividness(one))]
    common = set.intersection(*map(set, costs)) if costs else set()
    cheap = [value for value in common if sum(cost[value] for cost in costs) <= VIVIDNESS_COST * len(costs)]
    return max(cheap, default=1.0)


def _costs_of_vividness(evaluation: Evaluation) -> dict[float, float]:
    """CIEDE2000 by vividness, above the lowest of the front and over the gray copy's."""
    gray = evaluation.gray_ciede2000
    errors = {point.vividness: error for point in evaluation.front if (error := finite(point.ciede2000)) is not None}
    return {value: (error - min(errors.values())) / gray for value, error in errors.items()} if gray else {}


def _read(file: Path) -> Evaluation:
    subject = f"evaluation {file}"
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise cannot_read(subject, error, DAMAGED_FIX) from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            problem = f"format={first['input']}, but this version reads format {FORMAT}"
            raise UserError(subject, problem, "evaluate again with this version") from None
        raise UserError(
            subject, f"damaged ({explain(error, 'its content', ['format']).problem})", DAMAGED_FIX
        ) from None
    except ValueError as error:
        raise UserError(subject, f"damaged ({error})", DAMAGED_FIX) from None
