"""ImageNet in miniature."""

from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n02123045")


def save(path, colour=(10, 200, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(
        path, "JPEG" if path.suffix.lower() in (".jpeg", ".jpg") else "PNG"
    )


def classes(root, training=3, validation=2):
    for k, synset in enumerate(reversed(SYNSETS)):
        for n in range(training):
            save(root / "train" / synset / f"{synset}_{n}.JPEG", (80 * k, 0, 0))
        for n in range(validation):
            save(
                root / "val" / synset / f"ILSVRC2012_val_{validation * k + n:08d}.JPEG",
                (0, 80 * k, 0),
            )
