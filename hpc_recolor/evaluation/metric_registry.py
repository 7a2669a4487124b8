"""Every metric and every method that an evaluation measures, described once.

To add a metric: compute it in `image_metrics.measure`, describe it here, and test it against an independent
implementation. Files, tables and the report follow. Imports nothing heavy: the report reads this without torch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", "near zero", "unranked"]
# The option without which a metric is not measured.
Needs = Literal["lpips_weights", "fid_weights", "recognition"]


@dataclass(frozen=True)
class Metric:
    """One metric of images, as means over images show it.

    key: in evaluation files. name, unit: heading of its column in the report. digits: decimals shown. better: which
    values are. formula: written into every evaluation that has it; changing it means measuring all again.
    short: heading in the table that `evaluate` prints, empty where it is left out there.
    per_image: the methods (and `original`) whose value for each image is written too, for paired differences.
    needs: the option without which it is not measured.
    """

    key: str
    name: str
    unit: str
    digits: int
    better: Better
    formula: str
    short: str = ""
    per_image: tuple[str, ...] = ()
    needs: Needs | None = None

    def score(self, value: float) -> float:
        """The lower, the better."""
        return {"lower": value, "higher": -value, "near zero": abs(value)}.get(self.better, 0.0)


@dataclass(frozen=True)
class Method:
    """A way to make an image of a photograph: by the model, or by a baseline without one.

    key: of its row of means in evaluation files. name: in the table that `evaluate` prints. prefix: of its metrics in
    an image's record. formula: how its images are made.
    """

    key: str
    name: str
    prefix: str
    formula: str = ""
    baseline: bool = False


def _recognized(lite: int, side_px: int, short: str) -> Metric:
    """What an EfficientNet-Lite recognizes on pictures of its own side."""
    return Metric(
        f"recognized_lite{lite}",
        f"Recognized, Lite{lite}",
        "",
        digits=3,
        better="higher",
        short=short,
        per_image=("model", "gray"),
        needs="recognition",
        formula="share of pictures whose most likely ImageNet class is their original's (as in arXiv:1603.08511), by "
        f"EfficientNet-Lite{lite} on pictures enlarged to {side_px} px, bicubic",
    )


def _frechet(lite: int, side_px: int) -> Metric:
    """The distance in an EfficientNet-Lite's features of pictures of its own side."""
    return Metric(
        f"frechet_lite{lite}",
        f"Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet, Lite{lite}",
        "",
        digits=1,
        better="lower",
        needs="recognition",
        formula="Frechet distance (torchmetrics) between these pictures' and their originals' 1280 pooled features of "
        f"EfficientNet-Lite{lite} on pictures enlarged to {side_px} px, bicubic; not FID, and as that it depends on "
        "how many there are",
    )


# In the order of the report's columns. The formulas are part of stored evaluations: another wording is another formula.
METRICS = (
    Metric(
        "ciede2000",
        "CIEDE2000",
        "\N{GREEK CAPITAL LETTER DELTA}E",
        digits=2,
        better="lower",
        short="CIEDE2000",
        per_image=("model", "model_own_l", "gray", "mean_color"),
        formula="Delta E 2000 (Sharma, Wu and Dalal 2005), weights 1, of sRGB in scikit-image's CIE L*a*b* (D65, "
        "2 degrees), mean over the pixels",
    ),
    Metric(
        "ab_error",
        "ab error",
        "Lab units",
        digits=2,
        better="lower",
        short="ab error",
        per_image=("model", "gray", "mean_color"),
        formula="mean absolute difference over the pixels' a* and b* [Lab units]",
    ),
    Metric(
        "mae",
        "MAE",
        "levels",
        digits=2,
        better="lower",
        formula="mean absolute difference over R, G and B of 8-bit sRGB [levels, 0 to 255]",
    ),
    Metric(
        "psnr",
        "PSNR",
        "dB",
        digits=2,
        better="higher",
        short="PSNR dB",
        per_image=("model",),
        formula="10 log10(255^2 / mean squared difference over R, G and B) of each picture, at most 58.9 dB, "
        "which rounding to whole levels alone leaves (equal pictures would be infinitely good), then the mean [dB]",
    ),
    Metric(
        "ssim",
        "SSIM",
        "",
        digits=4,
        better="higher",
        short="SSIM",
        per_image=("model",),
        formula="as torchmetrics in float64: of R, G and B each, then their mean; Gaussian window of 11 x 11 pixels "
        "with sigma 1.5, population covariance (divided by n), data range 255, k1 0.01, k2 0.03; borders are mirrored "
        "by 5 pixels without repeating the edge, and every pixel counts (scikit-image with gaussian_weights and "
        "use_sample_covariance=False gives the same of pictures padded so, whose border it leaves out again)",
    ),
    Metric(
        "lpips",
        "LPIPS",
        "",
        digits=4,
        better="lower",
        needs="lpips_weights",
        formula="torchmetrics LPIPS 0.1, AlexNet, of pictures in [-1, 1] at their own size, mean over pictures",
    ),
    Metric(
        "fid",
        "FID",
        "",
        digits=1,
        better="lower",
        needs="fid_weights",
        formula="torchmetrics FID, 2048 features of Inception-v3 on pictures resized to 299 x 299, between these "
        "pictures and their originals; an estimate that comes out too large with few pictures, and depends on how "
        "many there are",
    ),
    _recognized(0, 224, "recognized"),
    _recognized(2, 260, "by Lite2"),
    _frechet(0, 224),
    _frechet(2, 260),
    Metric(
        "colorfulness",
        "Colorfulness",
        "levels",
        digits=1,
        better="unranked",
        short="colorfulness",
        per_image=("model", "original"),
        formula="Hasler and Suesstrunk 2003: with rg = R - G and yb = (R + G) / 2 - B, "
        "sqrt(var rg + var yb) + 0.3 sqrt((mean rg)^2 + (mean yb)^2) [levels]",
    ),
    Metric(
        "colorfulness_difference",
        "Colorfulness \N{MINUS SIGN} originals\N{RIGHT SINGLE QUOTATION MARK}",
        "levels",
        digits=1,
        better="near zero",
        formula="mean colorfulness of the row minus that of the originals",
    ),
    Metric(
        "colorfulness_ddcolor",
        "Colorfulness, DDColor",
        "levels",
        digits=1,
        better="unranked",
        formula="DDColor (arXiv:2212.11613): as colorfulness, with |R - G| and |(R + G) / 2 - B|",
    ),
    Metric(
        "colorfulness_ddcolor_difference",
        "DDColor \N{MINUS SIGN} originals\N{RIGHT SINGLE QUOTATION MARK}",
        "levels",
        digits=1,
        better="near zero",
        formula="mean colorfulness_ddcolor of the row minus that of the originals",
    ),
)

METHODS = (
    Method("model", "model", prefix=""),
    Method(
        "model_own_l",
        "model, photo's L*",
        prefix="own_l_",
        formula="a* and b* of the model's picture with L* of the photograph",
    ),
    Method(
        "gray",
        "gray copy",
        prefix="gray_",
        baseline=True,
        formula="what the network was given, as a picture: Rec. 601 luma in RGB runs, L* in Lab runs",
    ),
    Method(
        "mean_color",
        "mean color",
        prefix="mean_color_",
        baseline=True,
        formula="one a* and b* for all pictures, the mean over the measured originals, with L* of each: a constant "
        "that knows the test set, and so a little stronger than one that could be learned",
    ),
)

# Key of a training loss, in the order of `validation_scores.network_losses` -> its formula.
LOSSES = {
    "l1": "the generator's L1 in the network's space, mean over pictures",
    "adversarial": "the generator's adversarial loss, discriminator in eval mode, mean over pictures",
    "discriminator": "half its loss on originals and half on generated pictures, in eval mode, mean over pictures",
}
MEANS = "of each picture first, then over the pictures in order, in float64"

BY_KEY = {metric.key: metric for metric in METRICS}


def formulas(given: Collection[str] = ()) -> dict[str, str]:
    """The formulas of all that is measured, by key. given: names of the options of Needs that were given."""
    always = {metric.key: metric.formula for metric in METRICS if metric.needs is None}
    optional = {metric.key: metric.formula for metric in METRICS if metric.needs in given}
    methods = {method.key: method.formula for method in METHODS if method.formula}
    return always | LOSSES | {"means": MEANS} | methods | optional


def image_key(metric: str, method: str) -> str:
    """The key of a method's metric in the record of one image, such as `gray_ciede2000`."""
    prefixes = {method.key: method.prefix for method in METHODS} | {"original": "original_"}
    return f"{prefixes[method]}{metric}"
