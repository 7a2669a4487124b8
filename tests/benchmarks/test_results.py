"""Every file in benchmarks/results has the schema of its kind: the writer's own model, or one of those below."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from benchmarks.compile_report.report import Row as CompiledRow
from benchmarks.kernels.report import Report as KernelReport
from hpc_recolor.config import Config

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"

Share = Annotated[float, Field(ge=0, le=1)]
Times = dict[str, Annotated[list[PositiveFloat], Field(min_length=3)]]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Compilers(Schema):
    """Where a compile report was made: it needs no GPU, and depends on no processor."""

    python: str
    versions: dict[str, str]
    commit: str


class Machine(Compilers):
    """What `benchmarks.machine.describe_machine` records."""

    processor: str
    cores: PositiveInt
    threads: PositiveInt
    gpu: str | None


class Measured(Schema):
    """A benchmark of a run, with the config it ran. Older configs have fewer fields."""

    machine: Machine
    config: dict[str, dict[str, Any]]


class CheckpointResult(Measured):
    """Medians [s] and all rounds, of saving and restoring."""

    seconds: dict[str, PositiveFloat]
    stalled_s: PositiveFloat
    size_mb: PositiveFloat
    ratios: Annotated[dict[str, PositiveFloat], Field(min_length=4)]
    times_s: Times
    rank: NonNegativeInt
    ranks: PositiveInt


class CompileResult(Schema):
    """Registers, spills and access widths of each kernel on each architecture."""

    machine: Compilers
    rows: Annotated[list[CompiledRow], Field(min_length=1)]


class DataResult(Measured):
    """Throughput of each loader, and the step time with it, over the rounds, unless what is needed was given."""

    images_per_s: Times
    needed_images_per_s: PositiveFloat | None = None
    step_ms: Times


class StepResult(Measured):
    """Medians [ms] of plain PyTorch, of it compiled, and of the loop's step at ZeRO stages; ratios above 1 are faster
    than plain. Where nothing can be counted, as in compiled code or without a GPU, there is None."""

    step_ms: dict[str, PositiveFloat]
    ratios: dict[str, PositiveFloat]
    images_per_s: dict[str, PositiveFloat]
    peak_tflop_per_s: PositiveFloat
    share_of_peak: dict[str, PositiveFloat]
    launches: dict[str, PositiveInt | None]
    waits: dict[str, NonNegativeInt | None]
    rounds: PositiveInt
    rank: NonNegativeInt
    ranks: PositiveInt
    times_ms: Times


class StepStagesResult(Measured):
    """As StepResult, of the engines at each ZeRO stage, without the rest of the loop's step: what `benchmarks.step`
    wrote before it timed that."""

    step_ms: dict[str, PositiveFloat]
    ratios: dict[str, PositiveFloat]
    rounds: PositiveInt
    rank: NonNegativeInt
    ranks: PositiveInt
    times_ms: Times


class Structure(Schema):
    """Counts of the code at one commit (`benchmarks.structure`)."""

    commit: str | None
    files: PositiveInt
    lines: PositiveInt
    functions: PositiveInt
    function_lines_median: PositiveInt
    function_lines_p99: PositiveInt
    function_lines_max: PositiveInt
    functions_over_60_lines: NonNegativeInt
    rooms: PositiveInt
    arrows: PositiveInt
    circles: list[list[str]]
    training_rooms: PositiveInt
    training_arrows: PositiveInt
    training_circles: list[list[str]]
    arguments_annotated: Share
    arguments_annotated_triton: Share
    public_functions: PositiveInt
    public_functions_documented: Share


class StructureResult(Schema):
    """The code before and after a change."""

    before: Structure
    after: Structure


# By the beginning of a file's name, up to the first "-".
SCHEMAS: dict[str, Any] = {
    "checkpoint": CheckpointResult,
    "compile": CompileResult,
    "data": DataResult,
    "kernels": KernelReport,
    "step": StepResult | StepStagesResult,
    "structure": StructureResult,
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_has_the_schema_of_its_kind(file: Path) -> None:
    kind = file.stem.partition("-")[0]
    assert kind in SCHEMAS, f"{file.name}: a new kind of result; add its schema to SCHEMAS"
    TypeAdapter(SCHEMAS[kind]).validate_json(file.read_bytes())


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_names_sections_that_configs_have(file: Path) -> None:
    content = TypeAdapter(dict[str, Any]).validate_json(file.read_bytes())
    assert set(content.get("config", {})) <= set(Config.model_fields)
