"""Random crops: inside the image, of the sides asked for, and the same whoever draws them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpc_recolor.data.crops import crop
from hpc_recolor.data.order import SampleOrder

WHOLE = np.zeros((1, 3), np.float32)


def ramp(side: int) -> torch.Tensor:
    """An image whose red is the column and whose green is the row."""
    image = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    image[..., 0] = torch.arange(side, dtype=torch.uint8)
    image[..., 1] = torch.arange(side, dtype=torch.uint8)[:, None]
    return image


@given(
    smallest=st.floats(0.1, 0.99),
    drawn=st.tuples(*[st.floats(0, 1, exclude_max=True, width=32)] * 3),
)
def test_a_crop_is_a_square_of_the_drawn_side_inside_the_image(
    smallest: float, drawn: tuple[float, float, float]
) -> None:
    cut = crop(ramp(128), np.array([drawn], np.float32), smallest).float()
    side = 128 * (smallest + (1 - smallest) * drawn[0])
    for axis, (channel, place) in enumerate(((0, drawn[1]), (1, drawn[2]))):
        values = cut[0, :, :, channel].movedim(axis, 0)[0]  # along the ramp
        first = (128 - side) * place
        expected = first + side * (torch.arange(128) + 0.5) / 128 - 0.5
        torch.testing.assert_close(values, expected.clamp(0, 127), atol=0.51, rtol=0)


def test_crops_follow_the_stream_of_samples() -> None:
    order = SampleOrder(10, 3)
    whole = order.draw_crops(4, 20)
    np.testing.assert_array_equal(whole, np.concatenate([order.draw_crops(4, 9), order.draw_crops(13, 11)]))
    assert whole.min() >= 0
    assert whole.max() < 1
    assert len(np.unique(whole)) == whole.size  # another crop of the same sample in each epoch
