import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder


def images(n, size=(6, 5)):
    return np.random.default_rng(n).integers(0, 256, (n, size[1], size[0], 3), dtype=np.uint8)


def save(folder, pictures, name="{}.png"):
    for i, image in enumerate(pictures):
        path = folder / name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_pictures_come_in_the_order_of_their_paths(tmp_path):
    x = images(4)
    save(tmp_path, x[:3])
    save(tmp_path, x[3:], "0more/{}.bmp")
    (tmp_path / "metadata.jsonl").write_text("not a picture")
    (tmp_path / ".0.png.part").write_bytes(b"half a picture")
    found = ImageFolder(tmp_path)
    assert found.files == ["0.png", "0more/0.bmp", "1.png", "2.png"] and len(found) == 4
    np.testing.assert_array_equal(np.stack([found[i] for i in range(4)]), x[[0, 3, 1, 2]])
    np.testing.assert_array_equal(ImageFolder(tmp_path, ["2.png"])[0], x[2])


def test_bad_folders_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*gone of images"):
        ImageFolder(tmp_path / "gone")
    with pytest.raises(UserError, match=f"there are no images in {tmp_path}; files ending in .png"):
        ImageFolder(tmp_path)
    save(tmp_path, images(2))
    save(tmp_path, images(1, (6, 7)), "2.png")
    with pytest.raises(
        UserError,
        match="differ in size: 0.png has 6 x 5 pixels and 2.png 6 x 7; measures compare images of one",
    ):
        ImageFolder(tmp_path)[2]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"the image .*1.png cannot be read \(it is empty or no image\)"
    ):
        ImageFolder(tmp_path)[1]
