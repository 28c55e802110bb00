"""Small images of the kinds that data sets hold, and a folder of them with a manifest."""

import io
import json

import numpy as np
from PIL import Image

WIDE = (48, 32)


def noise(seed, size=WIDE, mode="RGB"):
    """Returns an image of (width, height) of random pixels."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else size[::-1]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


def encoded(image, kind="JPEG", **options):
    """Returns the bytes of the image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_jpeg(seed, orientation=6):
    """Returns a JPEG file, as phones write them, that is stored in landscape and displayed in portrait."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(seed), exif=exif)


def mask(size=WIDE):
    """Returns a mask that is white in its left half."""
    drawn = Image.new("L", size)
    drawn.paste(255, (0, 0, size[0] // 2, size[1]))
    return drawn


def write_folder(folder, count=6):
    """Writes images of many kinds and pairs.jsonl; returns its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [
        ("jpg", lambda seed: encoded(noise(seed))),
        ("jpg", rotated_jpeg),
        ("png", lambda seed: encoded(noise(seed, mode="RGBA"), "PNG")),
        ("jpg", lambda seed: encoded(noise(seed, mode="CMYK"))),
        ("webp", lambda seed: encoded(noise(seed), "WEBP")),
        ("png", lambda seed: encoded(noise(seed, mode="L"), "PNG")),
    ]
    lines = []
    for i in range(count):
        (name, make), several = kinds[i % len(kinds)], 1 + i % 2
        (folder / f"target{i}.{name}").write_bytes(make(i))
        for j in range(several):
            (folder / f"reference{i}_{j}.jpg").write_bytes(encoded(noise(100 + 2 * i + j)))
        (folder / f"mask{i}.png").write_bytes(encoded(mask(), "PNG"))
        line = dict(references=[f"reference{i}_{j}.jpg" for j in range(several)], target=f"target{i}.{name}")
        line |= dict(prompt=f"number {i}, é", subject="dog")
        line |= {"masks": [f"mask{i}.png", None][:several]} if i % 3 else {}
        line |= {"scores": {"dino": i / 8}} if i != 2 else {}
        lines.append(line)
    write_manifest(folder / "pairs.jsonl", lines)
    return lines


def write_manifest(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
