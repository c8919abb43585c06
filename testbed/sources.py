"""Make ``references.safetensors``, all that pictures are made of: ``python -m testbed.sources``.

Photographs come from the wheels of scikit-image, matplotlib and scikit-learn, emoji from the npm packages
``emoji-datasource-google`` (Noto Color Emoji, Apache-2.0) and ``emoji-datasource-twitter`` (Twemoji, CC-BY 4.0). Only this command
needs them: training, judging and the demo read the file.
"""

import argparse
import io
import itertools
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from uniforget.atomic import replace_by

from . import concepts as c
from .captions import ITEMS
from .data import REFERENCES

EMOJI_PACKAGES = {"soft": ("emoji-datasource-google@16.0.0", "google"), "flat": ("emoji-datasource-twitter@16.0.0", "twitter")}
SKLEARN = "scikit-learn==1.7.2"
SHORTEST = 420  # pixels: shorter edge of the photographs that are kept


def fetch(work):
    """Fetch emoji and photographs once into the folder `work`; its path.

    Raises:
        RuntimeError: npm or pip is missing, or a package cannot be had.
    """
    work = Path(work).resolve()
    for style, (package, vendor) in EMOJI_PACKAGES.items():
        _emoji(work / style, package, f"package/img/{vendor}/64/")
    if not (work / "photographs/flower.jpg").is_file():
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), SKLEARN], work)
        wheel = next(work.glob("scikit_learn-*.whl"))
        (work / "photographs").mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in ("china.jpg", "flower.jpg"):
                (work / "photographs" / name).write_bytes(archive.read(f"sklearn/datasets/images/{name}"))
        wheel.unlink()
    return work


def _emoji(folder, package, inside):
    if (folder / inside).is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / _run(["npm", "pack", "--silent", package], folder).strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [m for m in tar if m.name.startswith(inside)], filter="data")
    archive.unlink()


def _run(command, folder):
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"training pictures: {' '.join(command)} failed in {folder}: {error}") from error


def _photograph(work, file):
    """A photograph of that name, ``SHORTEST`` pixels on its shorter edge."""
    import matplotlib
    from skimage import data as skimage_data

    folders = (Path(skimage_data.__file__).parent, Path(matplotlib.get_data_path()) / "sample_data", work / "photographs")
    image = Image.open(next(folder / file for folder in folders if (folder / file).is_file())).convert("RGB")
    scale = SHORTEST / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _packed(image, kind, **options):
    """The image file's bytes, uint8 (k,)."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.sources", description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"), help="where packages are unpacked")
    parser.add_argument("--output", type=Path, default=REFERENCES)
    args = parser.parse_args(argv)
    work = fetch(args.work)
    tensors = {}
    for (style, (_, vendor)), (name, stem) in itertools.product(EMOJI_PACKAGES.items(), c.SUBJECTS.items()):
        image = Image.open(work / style / f"package/img/{vendor}/64/{stem}.png").convert("RGBA")
        tensors[f"drawing.{style}.{name}"] = _packed(image, "PNG", optimize=True)
    files = {row[0] for row in c.PHOTOGRAPHS.values()} | {i.picture.file for i in ITEMS if isinstance(i.picture, c.Crop)}
    for file in sorted(files):
        tensors[f"photograph.{file}"] = _packed(_photograph(work, file), "JPEG", quality=92)
    replace_by(args.output, lambda path: save_file(tensors, path))
    print(f"{args.output}: {len(tensors)} pictures, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
