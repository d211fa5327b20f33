"""Code written for SAM and SAM 2 gets the predictor's answers under the names it knows."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image

from seem_jax.sam_names import SamPredictor, SamVideoPredictor
from seem_jax.video import VideoPredictor, read_frames
from tests.predictor_support import picture, tiny_predictor


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


@pytest.fixture
def clip(tmp_path):
    for number in range(5):
        Image.fromarray(picture(seed=number)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_an_image_is_set_once_and_asked_twice(predictor):
    sam, image = SamPredictor(predictor), picture()
    sam.set_image(image)
    masks, scores, logits = sam.predict(np.array([[20, 30], [90, 60]]), np.array([1, 0]))
    predictor.set_image(image)
    want = predictor.predict(points=[[20, 30], [90, 60]], point_labels=[1, 0], top_k=3)
    np.testing.assert_array_equal(masks, want.masks)
    np.testing.assert_array_equal(scores, want.scores)
    np.testing.assert_array_equal(logits, want.logits)
    full, _, _ = sam.predict(
        np.array([[20, 30]]), [1], mask_input=logits[:1], multimask_output=False, return_logits=True
    )
    again = predictor.predict(points=[[20, 30]], mask=masks[0])
    np.testing.assert_array_equal(full > 0, again.masks)
    sam.reset_predictor()
    with pytest.raises(ValueError, match="call set_image"):
        sam.predict(box=[1, 1, 9, 9])


def test_batches_and_bad_ones(predictor):
    sam = SamPredictor(predictor)
    images = [picture(seed=1), picture(40, 50, seed=2)]
    sam.set_image_batch(images)
    boxes = [[5, 5, 60, 60], [1, 1, 30, 30]]
    masks, scores, logits = sam.predict_batch(box_batch=boxes, multimask_output=False)
    for index, image in enumerate(images):
        predictor.set_image(image)
        want = predictor.predict(box=boxes[index])
        np.testing.assert_array_equal(masks[index], want.masks)
        assert scores[index].shape == (1,) and logits[index].shape == want.logits.shape
    with pytest.raises(ValueError, match="box_batch has 1 entries for 2 images"):
        sam.predict_batch(box_batch=boxes[:1])
    sam.set_image(images[0])
    with pytest.raises(ValueError, match="mask_input has shape"):
        sam.predict(box=boxes[0], mask_input=np.zeros((1, 256, 256)))


def test_every_thing_is_a_dict_as_sam_writes_it(predictor):
    predictor.reset_image()
    things = SamPredictor(predictor, ["disc", "bar"]).generate(picture())
    assert predictor.image is None
    assert things and {"segmentation", "area", "bbox", "predicted_iou"} <= set(things[0])
    for thing in things:
        x, y, width, height = (int(n) for n in thing["bbox"])
        assert thing["segmentation"][y : y + height, x : x + width].sum() == thing["area"]
        assert 0 <= thing["stability_score"] <= 1


def test_a_video_is_followed_from_where_objects_are_said(predictor, clip):
    video = SamVideoPredictor(predictor)
    state = video.init_state(clip)
    frame, ids, masks = video.add_new_points_or_box(state, 1, 4, points=[[20, 30]], labels=[1])
    assert (frame, ids, masks.shape) == (1, [4], (1, 1, 80, 120))
    half = np.zeros((80, 120), bool)
    half[:, :60] = True
    _, ids, _ = video.add_new_mask(state, frame_idx=3, obj_id=2, mask=half)
    assert ids == [4, 2]
    got = list(video.propagate_in_video(state))
    assert [(frame, ids) for frame, ids, _ in got] == [(1, [4]), (2, [4]), (3, [4, 2]), (4, [4, 2])]
    tracker = VideoPredictor(predictor)
    tracker.add(4, points=[[20, 30]])
    frames = list(read_frames(clip))
    np.testing.assert_array_equal(got[0][2][:, 0], tracker.push(frames[1]).masks)
    np.testing.assert_array_equal(got[1][2][:, 0], tracker.push(frames[2]).masks)
    some = video.propagate_in_video(state, start_frame_idx=2, max_frame_num_to_track=1)
    assert [frame for frame, _, _ in some] == [2, 3]
    video.remove_object(state, 4)
    assert [ids for _, ids, _ in video.propagate_in_video(state)] == [[2], [2]]
    video.reset_state(state)
    with pytest.raises(ValueError, match="no object"):
        next(video.propagate_in_video(state))


def test_what_is_refused_leaves_the_state_as_it_was(predictor, clip):
    video = SamVideoPredictor(predictor)
    state = video.init_state(clip)
    for call, named in (
        ({"frame_idx": 9, "obj_id": 1, "points": [[1, 1]]}, "frame_idx = 9"),
        ({"frame_idx": 0, "obj_id": 0, "points": [[1, 1]]}, "object_id"),
        ({"frame_idx": 0, "obj_id": 1, "points": [[900, 1]]}, "points"),
        ({"frame_idx": 0, "obj_id": 1}, "no prompt"),
    ):
        with pytest.raises(ValueError, match=named):
            video.add_new_points_or_box(state, **call)
        assert state.said == {}
    with pytest.raises(ValueError, match="path"):
        video.init_state(clip / "missing.mp4")
    with pytest.raises(ValueError, match="obj_id = 3"):
        video.remove_object(state, 3)


def test_arguments_stand_in_the_order_of_sam():
    names = list(inspect.signature(SamPredictor.predict).parameters)[1:6]
    assert names == ["point_coords", "point_labels", "box", "mask_input", "multimask_output"]
