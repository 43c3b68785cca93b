"""Resizing by convention: Pillow is here to compare with; PyTorch and torch-fidelity where they are
installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.eval.resizing import (
    CONVENTIONS,
    bicubic_bytes,
    clip_transform,
    clip_transform_one,
    resize,
    resize_clean_one,
)

SIZES = [
    ((32, 32), (299, 299)),
    ((40, 27), (31, 64)),
    ((64, 64), (64, 64)),
    ((97, 61), (13, 29)),
    ((5, 3), (9, 1)),
]


def pictures(shape, number=2):
    """Noise, and a checkerboard: the widest jumps that bytes have."""
    noise = np.random.default_rng(0).integers(0, 256, (number - 1, *shape, 3), dtype=np.uint8)
    board = 255 * (np.indices((*shape, 3)).sum(axis=0) % 2)
    return np.concatenate([noise, board[None].astype(np.uint8)])


def ours(images, size, convention):
    return np.asarray(
        jax.jit(resize, static_argnums=(1, 2))(jnp.asarray(images, jnp.float32), size, convention)
    )


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_clean_is_pillow_on_floats(old, new):
    images = pictures(old)
    want = [
        [
            np.asarray(
                Image.fromarray(image[..., c].astype(np.float32)).resize(
                    new[::-1], Image.Resampling.BICUBIC
                )
            ).clip(0, 255)
            for c in range(3)
        ]
        for image in images
    ]
    got = ours(images, new, "clean")
    np.testing.assert_allclose(got, np.moveaxis(want, 1, -1), atol=2e-4)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bytes_are_pillows_exactly(old, new):
    images = pictures(old, 3)
    want = [
        np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC))
        for image in images
    ]
    np.testing.assert_array_equal(jax.jit(bicubic_bytes, static_argnums=1)(images, new), want)


@pytest.mark.parametrize(
    ("old", "size"), [((32, 32), 32), ((40, 27), 19), ((31, 64), 24), ((20, 23), 20)]
)
def test_the_clip_transform_equals_pillow(old, size):
    """As torchvision's Resize(size, BICUBIC) and CenterCrop(size) do it, in that package's words."""
    height, width = old
    new_short, new_long = size, int(size * max(old) / min(old))
    w, h = (new_short, new_long) if width <= height else (new_long, new_short)
    top, left = int(round((h - size) / 2.0)), int(round((w - size) / 2.0))
    assert (
        (h - size) % 2 or (w - size) % 2 or old == (32, 32)
    )  # half a pixel is rounded to an even one
    want = [
        np.asarray(
            Image.fromarray(image)
            .resize((w, h), Image.Resampling.BICUBIC)
            .crop((left, top, left + size, top + size))
        )
        for image in pictures(old)
    ]
    np.testing.assert_array_equal(
        jax.jit(clip_transform, static_argnums=1)(pictures(old), size), want
    )


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_pytorch_fid_is_torch(old, new):
    torch = pytest.importorskip("torch")
    images = pictures(old)
    planes = torch.tensor(images).permute(0, 3, 1, 2).float()
    want = (
        torch.nn.functional.interpolate(planes, size=new, mode="bilinear", align_corners=False)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    np.testing.assert_allclose(ours(images, new, "pytorch-fid"), want, atol=1e-3)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_tf_legacy_is_torch_fidelity(old, new):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip(
        "torch_fidelity.interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    images = pictures(old)
    want = (
        theirs(torch.tensor(images).permute(0, 3, 1, 2).float(), size=new, align_corners=False)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    np.testing.assert_allclose(ours(images, new, "tf-legacy"), want, atol=1e-3)


def test_sampling_positions_of_bilinear_kernels():
    """A ramp shows the place that each output pixel reads: (i + 1/2) s - 1/2 or i s, kept between
    the outermost pixels.
    """
    ramp = np.broadcast_to(np.arange(8.0)[None, None, :, None], (1, 8, 8, 3))
    for new in (5, 8, 20):
        places = {
            "pytorch-fid": (np.arange(new) + 0.5) * 8 / new - 0.5,
            "tf-legacy": np.arange(new) * 8 / new,
        }
        for convention, at in places.items():
            np.testing.assert_allclose(
                ours(ramp, (3, new), convention)[0, 1, :, 2], at.clip(0, 7), atol=1e-5
            )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_constant_image_stays_constant(convention):
    np.testing.assert_allclose(
        ours(np.full((1, 30, 17, 3), 200.0), (11, 40), convention), 200, rtol=1e-6
    )


def test_an_unknown_convention_is_an_error():
    with pytest.raises(
        UserError, match="no resizing convention 'bilinear', only pytorch-fid, tf-legacy, clean"
    ):
        resize(jnp.zeros((1, 4, 4, 3)), (2, 2), "bilinear")


@pytest.mark.parametrize("old", [(32, 32), (40, 27), (97, 61), (5, 3)])
def test_one_image_on_the_host_is_resized_as_a_batch_is(old):
    images = pictures(old)
    got = [resize_clean_one(image, (31, 64)) for image in images]
    assert got[0].dtype == np.float32
    np.testing.assert_allclose(ours(images, (31, 64), "clean"), got, atol=2e-4)
    again = [resize_clean_one(image, (31, 64)) for image in pictures((31, 64))]
    np.testing.assert_array_equal(again, pictures((31, 64)))
    transformed = np.asarray(clip_transform(jnp.asarray(images), 24))
    np.testing.assert_array_equal(transformed, [clip_transform_one(x, 24) for x in images])
    np.testing.assert_array_equal(
        np.asarray(clip_transform(jnp.asarray(transformed), 24)), transformed
    )
