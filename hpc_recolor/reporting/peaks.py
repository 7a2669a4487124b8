"""Peak throughput of GPUs from NVIDIA's data sheets: dense, at boost clock."""

import re

# Words of the device name that torch reports, more specific names first -> TFLOP/s of the tensor cores in 16 bits, and
# of float32 outside them, since TF32 stays off (hpc_recolor/runtime/distributed.py).
PEAKS = {
    ("B200",): (2250.0, 75.0),
    ("H200", "NVL"): (835.5, 60.0),
    ("H200",): (989.5, 67.0),
    ("H100", "NVL"): (835.5, 60.0),
    ("H100", "PCIe"): (756.5, 51.0),
    ("H100",): (989.5, 67.0),
    ("A100",): (312.0, 19.5),
}


def peak_tflop_per_s(hardware: str, precision: str) -> float | None:
    """The peak of a GPU for a run of this train.precision [TFLOP/s].

    None for devices that are not listed, such as CPUs, and for a part of a GPU (MIG).
    """
    words = set(re.split(r"[\s-]+", hardware))
    found = None if "MIG" in words else next((peak for name, peak in PEAKS.items() if words.issuperset(name)), None)
    if not found:
        return None
    half, single = found
    return single if precision == "fp32" else half
