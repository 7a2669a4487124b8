"""Tensors in files: what is written is read back to the bit, damage is named, parts are put together exactly once."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpc_recolor.run_folder import tensor_files
from hpc_recolor.run_folder.files import file_damage, record_of
from hpc_recolor.run_folder.tensor_files import Fragments, format_damage, write
from hpc_recolor.runtime.errors import UserError

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int64,
    torch.bool,
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def random_tensor(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits, so NaNs and infinities too."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=draw).bool()
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (size,), generator=draw, dtype=torch.uint8).view(dtype).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=60)
@given(
    st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES), st.booleans()), max_size=6), st.integers(0, 999)
)
def test_what_is_written_is_read_back_to_the_bit(
    described: dict[str, tuple[list[int], torch.dtype, bool]], seed: int
) -> None:
    tensors = {name: random_tensor(shape, dtype, seed) for name, (shape, dtype, _) in described.items()}
    turned = {
        name: tensors[name].T if described[name][2] and tensors[name].dim() == 2 else tensors[name] for name in tensors
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "some.safetensors"
        record = write(file, turned)
        assert record == record_of(file)
        assert file_damage(file, record) is None and format_damage(file) is None
        found = load_file(file)
    assert found.keys() == turned.keys()
    for name, tensor in turned.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert bits(found[name]) == bits(tensor), name


def test_tensors_of_many_chunks_and_odd_sizes_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", 1000)
    tensors = {"many": torch.arange(7777.0), "odd": torch.arange(3, dtype=torch.uint8), "one": torch.tensor(1.0)}
    record = write(tmp_path / "file", tensors)
    assert record.hash == xxhash.xxh3_128_hexdigest((tmp_path / "file").read_bytes())
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "file").items())


def test_parameters_that_learn_are_written_too(tmp_path: Path) -> None:
    write(tmp_path / "file", {"weight": torch.nn.Parameter(torch.ones(2))})
    assert load_file(tmp_path / "file")["weight"].tolist() == [1, 1]


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    record = write(file, {"weight": torch.arange(100.0)})
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert file_damage(file, record) == f"file.safetensors has {len(content) - 1} bytes, expected {len(content)}"
    file.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert "XXH3-128" in str(file_damage(file, record))
    file.unlink()
    assert file_damage(file, record) == "file.safetensors is missing"
    file.mkdir()
    assert file_damage(file, record) is not None
    (tmp_path / "loop").symlink_to("loop")
    assert "loop cannot be read" in str(file_damage(tmp_path / "loop", record))


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x80\x04K\x01.", b"\xff" * 64, (8).to_bytes(8, "little") + b'{"a":1} ']
)
def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "shard.safetensors"
    file.write_bytes(content)
    assert "shard.safetensors is not a safetensors file" in str(format_damage(file))
    with pytest.raises(UserError, match=r"shard\.safetensors: not a safetensors file"):
        Fragments([file])


def cut(tensor: Tensor, places: list[int]) -> dict[str, Tensor]:
    edges = [0, *places, len(tensor)]
    pairs = pairwise(edges)
    return {f"generator/weight/a.b@{start}": tensor[start:end] for start, end in pairs}


@settings(max_examples=40)
@given(st.data())
def test_parts_anywhere_in_any_number_of_files_make_the_same_tensor(data: st.DataObject) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0))
    parts = cut(tensor, sorted(data.draw(st.sets(st.integers(1, 49), max_size=8))))
    owner = {key: data.draw(st.integers(0, 2)) for key in parts}
    start = data.draw(st.integers(0, 50))
    numel = data.draw(st.integers(0, 50 - start))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.safetensors" for number in range(3)]
        for number, file in enumerate(files):
            write(file, {key: part for key, part in parts.items() if owner[key] == number})
        saved = Fragments(files)
        assert torch.equal(saved.read("generator", "weight", "a.b", 50), tensor)
        assert torch.equal(saved.read_range("generator", "weight", "a.b", start, numel), tensor[start : start + numel])


def saved_as(folder: Path, tensors: dict[str, Tensor]) -> Fragments:
    save_file(tensors, folder / "shard.safetensors")
    return Fragments([folder / "shard.safetensors"])


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([(0, 4), (6, 10)], "lacks elements 4 to 6"),
        ([(2, 10)], "lacks elements 0 to 2"),
        ([(0, 9)], "lacks elements 9 to 10"),
        ([(0, 6), (5, 10)], "has elements from 5 on twice"),
        ([(0, 5), (0, 10)], "has elements from 0 on twice"),
        ([(0, 10), (10, 12)], "has elements up to 12, expected 10"),
    ],
)
def test_parts_that_do_not_cover_a_tensor_once_are_refused(
    tmp_path: Path, places: list[tuple[int, int]], reason: str
) -> None:
    files = []
    for number, (start, end) in enumerate(places):
        files.append(tmp_path / f"{number}.safetensors")
        write(files[-1], {f"generator/ema/w@{start}": torch.zeros(end - start)})
    with pytest.raises(UserError, match=rf"tensor generator/ema/w in the .* shards: {reason}"):
        Fragments(files).read("generator", "ema", "w", 10)


def test_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tensor discriminator/weight/w in the .* shards: is missing"):
        saved_as(tmp_path, {"generator/weight/w@0": torch.zeros(1)}).read("discriminator", "weight", "w", 1)


@pytest.mark.parametrize("tensor", [torch.zeros(4, dtype=torch.float16), torch.zeros(2, 2), torch.tensor(1.0)])
def test_parts_of_another_kind_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(UserError, match=r"shard\.safetensors: generator/weight/w@0 is not a fragment"):
        saved_as(tmp_path, {"generator/weight/w@0": tensor})


def test_names_and_buffers_are_told_apart_by_network(tmp_path: Path) -> None:
    count = torch.tensor(7)
    saved = saved_as(
        tmp_path,
        {
            "generator/weight/b@0": torch.zeros(2),
            "generator/weight/b@2": torch.zeros(2),
            "generator/weight/a@0": torch.zeros(2),
            "discriminator/weight/c@0": torch.zeros(2),
            "generator/averaged/norm.count": count,
        },
    )
    assert saved.names("generator", "weight") == ["a", "b"]
    assert saved.names("generator", "ema") == []
    assert saved.averaged("generator") == {"norm.count": count}
    assert saved.averaged("discriminator") == {}
