import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.data.picture_folder import PictureFolder


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
    found = PictureFolder(tmp_path)
    assert found.files == ["0.png", "0more/0.bmp", "1.png", "2.png"] and len(found) == 4
    np.testing.assert_array_equal(np.stack([found[i] for i in range(4)]), x[[0, 3, 1, 2]])
    np.testing.assert_array_equal(PictureFolder(tmp_path, ["2.png"])[0], x[2])


def test_bad_folders_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*gone of pictures"):
        PictureFolder(tmp_path / "gone")
    with pytest.raises(
        UserError, match=f"there are no pictures in {tmp_path}; files ending in .png"
    ):
        PictureFolder(tmp_path)
    save(tmp_path, images(2))
    save(tmp_path, images(1, (6, 7)), "2.png")
    with pytest.raises(
        UserError,
        match="are of several sizes, 6 x 5 as 0.png and 6 x 7 as 2.png: measures compare sets",
    ):
        PictureFolder(tmp_path)[2]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"the picture .*1.png cannot be read \(it is empty or no image\)"
    ):
        PictureFolder(tmp_path)[1]
