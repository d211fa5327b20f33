"""Images are decoded exactly or refused clearly, and sizes are undone without loss."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from seem_jax import image as images


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 6, columns * 4, 255 - rows * 3 - columns], axis=2).astype(np.uint8)


def saved(array: np.ndarray, form: str = "PNG", mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def test_lossless_files_come_back_exactly():
    for form, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        data = saved(picture(), form, **options)
        np.testing.assert_array_equal(images.decode_image(data), picture())
        assert images.image_size(data) == (40, 60)


def test_jpeg_is_rgb_and_close_to_what_pillow_decodes():
    data = saved(picture(), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as reference:
        difference = images.decode_image(data).astype(int) - np.asarray(reference)
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode):
    data = saved(picture(), "JPEG" if mode == "CMYK" else "PNG", mode)
    out = images.decode_image(data)
    assert out.shape == (40, 60, 3)
    assert out.dtype == np.uint8


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = (np.arange(2400).reshape(40, 60) * 27).astype(np.uint16)
    data = cv2.imencode(".png", grey)[1].tobytes()
    np.testing.assert_array_equal(images.decode_image(data)[:, :, 1], grey >> 8)


def test_exif_rotation_is_ignored_unless_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(picture(), "JPEG", exif=exif.tobytes())
    assert images.decode_image(data).shape == (40, 60, 3)
    assert images.decode_image(data, upright=True).shape == (60, 40, 3)


def test_too_many_pixels_are_refused_from_the_header():
    header = saved(np.zeros((20, 30, 3), np.uint8))
    bomb = header[:16] + (50_000).to_bytes(4, "big") * 2 + header[24:]
    for data, limit in ((saved(picture()), 2000), (saved(picture(), "JPEG"), 2000)):
        with pytest.raises(ValueError, match=r"cat.* 60 x 40 pixels, more than the 2000 allowed"):
            images.decode_image(data, max_pixels=limit, name="cat")
    with pytest.raises(ValueError, match="cat"):
        images.decode_image(bomb, name="cat")


@pytest.mark.parametrize(
    "data", [b"", b"<html>no such file</html>", saved(picture())[:90], b"\xff\xd8\xff\xe0junk"]
)
def test_what_is_no_image_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r"cats/7\.jpg"):
        images.decode_image(data, name="cats/7.jpg")


def test_a_cut_jpeg_is_refused_not_filled_with_grey():
    data = saved(picture(200, 300), "JPEG", quality=95)
    with pytest.raises(ValueError, match="damaged JPEG"):
        images.decode_image(data[: len(data) // 2])


def test_index_maps_of_8_and_16_bits_come_back_and_others_are_refused():
    for dtype in (np.uint8, np.uint16):
        index = (np.arange(2400).reshape(40, 60) % 251).astype(dtype)
        back = images.decode_index_png(cv2.imencode(".png", index)[1].tobytes())
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, index)
    with pytest.raises(ValueError, match="one channel"):
        images.decode_index_png(saved(picture()))


def test_fit_edges_rounds_as_the_official_test_transform():
    assert images.fit_edges((480, 640), 800, 1333) == (800, 1067)
    assert images.fit_edges((427, 640), 800, 1333) == (800, 1199)
    assert images.fit_edges((300, 640), 800, 1333) == (625, 1333)
    assert images.fit_square((480, 640), 96) == (72, 96)
    assert images.fit_square((1, 1000), 96) == (1, 96)


def test_resize_keeps_pixel_centres():
    ramp = np.repeat(np.arange(0, 64, dtype=np.float32)[None], 8, axis=0)
    for width in (32, 128):
        out = images.resize(ramp, (8, width))
        expected = (np.arange(width) + 0.5) * 64 / width - 0.5
        np.testing.assert_allclose(out[0, 2:-2], expected[2:-2], atol=1e-4)
    np.testing.assert_array_equal(images.resize(ramp, (8, 64)), ramp)


def test_pad_and_unfit_are_inverse_up_to_the_resize():
    smooth = np.sin(np.linspace(0, 3, 48))[:, None] * np.cos(np.linspace(0, 3, 64))[None]
    fitted = images.fit_square((48, 64), 96)
    square = images.pad(images.resize(smooth.astype(np.float32), fitted), (96, 96), 7)
    assert square.shape == (96, 96)
    assert (square[fitted[0] :] == 7).all()
    back = images.unfit(np.stack([square, square])[None], fitted, (48, 64))
    assert back.shape == (1, 2, 48, 64)
    np.testing.assert_allclose(back[0, 1], smooth, atol=0.02)
    with pytest.raises(ValueError, match="resize it first"):
        images.pad(square, (50, 96))


def test_points_stay_on_their_pixel_and_below_one():
    points = np.array([[0, 0], [63, 47], [63.9, 47.9], [31, 10]], float)
    unit = images.fit_points(points, (48, 64), (72, 96), 96)
    assert unit.dtype == np.float32
    assert (unit >= 0).all()
    assert (unit < 1).all()
    np.testing.assert_allclose(unit[3] * 96, [47, 15])
    np.testing.assert_allclose(unit[1] * 96, [95, 71])


def test_jpeg_decoding_has_no_hidden_second_meaning_of_the_channels():
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 250
    out = images.decode_image(simplejpeg.encode_jpeg(red, 95))
    assert out[..., 0].min() > 240
    assert out[..., 2].max() < 10
