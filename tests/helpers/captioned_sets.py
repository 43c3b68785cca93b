"""CUB-200, Oxford-102 and MS-COCO in miniature, in the layouts of their archives."""

import json
import pickle

from PIL import Image

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")


def colour(n):
    """A colour that identifies image n."""
    return 40 * (n % 6), 20 * (n % 11), 10 * n % 250


def save(path, n=0, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(n)).save(path, quality=100)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def birds(root, images="images", text="text/text", lists="pickle", per_class=4):
    """Writes the tree and returns the names of its images; the last of three classes is for testing."""
    names = [f"{cls}/{cls[4:]}_{i:04d}_{100 + i}" for cls in CLASSES for i in range(per_class)]
    for n, name in enumerate(names):
        save(root / images / f"{name}.jpg", n)
        write(
            root / text / f"{name}.txt",
            f"A  Bird number {n}.\nthis one has a\ufffd\ufffdRED crown\r\n\n a bird number {n}. \n",
        )
    parts = {"train": names[: 2 * per_class], "test": names[2 * per_class :]}
    if lists == "pickle":
        for part, own in parts.items():
            write(root / part / "filenames.pickle", pickle.dumps(own, protocol=0))
    if lists == "classes":
        write(root / "trainvalclasses.txt", "\n".join(CLASSES[:2]))
        write(root / "testclasses.txt", CLASSES[2] + "\n")
    if lists == "numbers":
        folder = (root / images).parent
        write(
            folder / "images.txt", "".join(f"{n + 1} {name}.jpg\n" for n, name in enumerate(names))
        )
        write(
            folder / "train_test_split.txt",
            "".join(f"{n + 1} {int(n % 2 == 0)}\n" for n in range(len(names))),
        )
    return names


def garden(root, text="text_c10", count=6):
    for n in range(1, count + 1):
        save(root / "jpg" / f"image_{n:05d}.jpg", n)
        write(root / text / f"class_{n % 3 + 1:05d}" / f"image_{n:05d}.txt", f"Flower {n}\n")
        write(root / text / f"class_{n % 3 + 1:05d}" / f"image_{n:05d}.h5", "x")


def scenes(root, twice=False, count=3):
    for part, first in (("train2014", 0), ("val2014", 500)):
        images = [
            {
                "id": first + n,
                "file_name": f"COCO_{part}_{first + n:012d}.jpg",
                "height": 8,
                "width": 12,
            }
            for n in range(count)
        ]
        for image in images:
            save(root / part / (part if twice else "") / image["file_name"], image["id"])
        captions = [
            {
                "image_id": image["id"],
                "id": 1000 * k + image["id"],
                "caption": f"\nA Man riding  {image['id']} {k}. ",
            }
            for image in images
            for k in range(5)
        ]
        write(
            root / "annotations" / f"captions_{part}.json",
            json.dumps(
                {
                    "info": {},
                    "licenses": [],
                    "type": "captions",
                    "images": images,
                    "annotations": captions[::-1],
                }
            ),
        )
