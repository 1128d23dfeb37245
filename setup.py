"""`pip install -e .` makes the `edg` command; the packages it needs are those of requirements.txt."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REQUIREMENTS = [
    line for line in (HERE / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
]
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "edg/__init__.py").read_text().splitlines()
    if "__version__ =" in line
)
# Folders of the repository that a wheel holds inside the package (edg/core/shipped.py). An editable install
# reads them in place; without them it is one path in a .pth file, which a folder named `edg` in the current
# folder (that of the clone) does not hide.
EDITABLE = "editable_wheel" in sys.argv
SHIPPED = {} if EDITABLE else {"edg.configs": "configs", "edg.prompts": "prompts"}
# Wheels exist for Linux x86-64 and Windows only. PyAV reads the training clips; decord on request.
DECORD = (
    'decord>=0.6; platform_system == "Windows" or platform_system == "Linux" and platform_machine == "x86_64"'
)
DEMO = ["gradio>=6.20"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
# Wheels exist for Linux; elsewhere building it needs clang.
FUZZ = 'atheris>=3; platform_system == "Linux" and platform_machine == "x86_64" and python_version == "3.11"'
TESTS = [
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "hypothesis>=6",
    "playwright",
    "nbclient",
    "ipykernel",
    FUZZ,
]

setup(
    name="edg",
    version=VERSION,
    description="Extrapolating and decoupling image-to-video models: more motion from a still image",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["edg", "edg.*"]), *SHIPPED],
    package_dir=SHIPPED or {"": "."},
    package_data={
        **({} if EDITABLE else {"edg.configs": ["**/*.yaml"], "edg.prompts": ["**/*"]}),
        "edg": [
            "sprites/weights/*.safetensors",
            *(f"report/*.{kind}" for kind in ("html", "css", "js")),
        ],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "lora": ["peft"],
        "decord": [DECORD],
        "plots": ["matplotlib"],
        "demo": DEMO,
        "docs": DOCS,
        "tests": [*TESTS, *DEMO, *DOCS, DECORD, "peft", "matplotlib"],
    },
    entry_points={"console_scripts": ["edg=edg.cli.main:entry"]},
)
