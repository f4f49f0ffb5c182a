"""A list file as Python objects, the obvious way."""

import os
from pathlib import Path


def read(list_file: Path, root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the pairs of paths, and the images' names.

    Raises:
        ValueError: an image stands there twice.
    """
    pairs, known = [], set()
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        image, label = (os.path.join(root, field) for field in line.split())
        if image in known:
            raise ValueError(f"{list_file}:{number}: {image} stands there twice")
        known.add(image)
        pairs.append((image, label))
    return pairs, [os.path.splitext(os.path.basename(image))[0] for image, _ in pairs]
