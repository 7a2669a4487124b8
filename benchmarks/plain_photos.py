"""A data set of photographs as in torchvision's documentation: Pillow decodes, transforms resize and flip."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2


class PlainPhotos(Dataset[Tensor]):
    """Photographs as uint8 (3, size, size), flipped at random. A module of its own, which workers import quickly."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        self.paths = paths
        flips = (v2.RandomHorizontalFlip(), v2.RandomVerticalFlip())
        self.transform = v2.Compose([v2.Resize((size, size)), *flips, v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.paths[number]) as photo:
            image: Tensor = self.transform(photo.convert("RGB"))
        return image
