"""SAM's and SAM 2's names for what `Predictor` and `VideoPredictor` do, for code written against those.

    sam = SamPredictor(Predictor.from_checkpoint("runs/shapes"))
    sam.set_image(image)
    masks, scores, logits = sam.predict(point_coords=[[120, 80]], point_labels=[1])

    video = SamVideoPredictor(predictor)
    state = video.init_state("clip.mp4")
    video.add_new_points_or_box(state, frame_idx=0, obj_id=1, points=[[120, 80]], labels=[1])
    for frame_idx, obj_ids, masks in video.propagate_in_video(state):

Names, argument order and shapes of results are those of segment-anything and sam2 (Meta, Apache-2.0).
Prompts of other kinds, names and memory have no place in them: use the predictors themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seem_jax.predictor import Prediction, Predictor, Prompts, everything
from seem_jax.predictor.programs import MASK_STRIDE
from seem_jax.video import VideoFrame, VideoPredictor, read_frames

MULTIMASK = 3  # masks of an ambiguous prompt


class SamPredictor:
    """`SAM2ImagePredictor`: an image is set once, then asked about."""

    def __init__(self, predictor: Predictor, classes: Sequence[str] | None = None):
        """classes is what `generate` looks for; the things of the training data if absent."""
        self.predictor, self.classes = predictor, classes
        self._images: list = []

    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image, uint8 [H, W, 3] in RGB."""
        self._images = [self.predictor.encode(image)]

    def set_image_batch(self, image_list: Sequence[np.ndarray]) -> None:
        """Encodes images of any sizes, for `predict_batch`; all of their features are kept."""
        self._images = [self.predictor.encode(image) for image in image_list]

    def reset_predictor(self) -> None:
        """Forgets the images."""
        self._images = []

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(masks [C, H, W], scores float32 [C], low resolution logits float32 [C, h, w]), best first.

        Coordinates are pixels (x, y) of the image. mask_input is one of the returned logits, [1, h, w].
        masks are bool, or logits with return_logits. C is at most 3, or 1 without multimask_output.
        """
        if len(self._images) != 1:
            raise ValueError(f"{len(self._images)} images are set; call set_image(image) first.")
        return self._predict(
            0, point_coords, point_labels, box, mask_input, multimask_output, return_logits
        )

    def predict_batch(
        self,
        point_coords_batch: Sequence | None = None,
        point_labels_batch: Sequence | None = None,
        box_batch: Sequence | None = None,
        mask_input_batch: Sequence | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """`predict` for each of the images set, as three lists."""
        given = {
            "point_coords_batch": point_coords_batch,
            "point_labels_batch": point_labels_batch,
            "box_batch": box_batch,
            "mask_input_batch": mask_input_batch,
        }
        for name, values in given.items():
            if values is not None and len(values) != len(self._images):
                raise ValueError(
                    f"{name} has {len(values)} entries for {len(self._images)} images."
                )
        columns = [
            values if values is not None else [None] * len(self._images)
            for values in given.values()
        ]
        rows = [
            self._predict(index, *row, multimask_output, return_logits)
            for index, row in enumerate(zip(*columns, strict=True))
        ]
        return tuple(map(list, zip(*rows))) if rows else ([], [], [])

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """`SamAutomaticMaskGenerator`: one dict per thing of an image, best first."""
        before = self.predictor.image
        try:
            self.predictor.set_image(image)
            return automatic_masks(self.predictor.instances(self.classes))
        finally:
            self.predictor.image = before

    def _predict(self, index, points, labels, box, mask_input, multimask_output, return_logits):
        image = self._images[index]
        mask = None
        if mask_input is not None:
            low = np.asarray(mask_input, np.float32)
            low = low[0] if low.ndim == 3 and len(low) == 1 else low
            side = image.placement.side // MASK_STRIDE
            if low.shape != (side, side):
                raise ValueError(
                    f"mask_input has shape {np.shape(mask_input)}; expected [1, {side}, {side}], one of "
                    "the logits that predict returned."
                )
            mask = everything.enlarge(low, image.placement) > 0
        asked = {"points": points, "point_labels": labels, "box": box, "mask": mask}
        (answer,) = self.predictor.answer(
            [(image, Prompts(**asked))], top_k=MULTIMASK if multimask_output else 1
        )
        masks = answer.masks
        if return_logits:
            masks = np.stack([everything.enlarge(low, image.placement) for low in answer.logits])
        return masks, answer.scores, answer.logits


def automatic_masks(answer: Prediction) -> list[dict[str, Any]]:
    """The dicts of `SamAutomaticMaskGenerator`, which `supervision.Detections.from_sam` reads."""
    height, width = answer.masks.shape[1:]
    out = []
    for index, mask in enumerate(answer.masks):
        x0, y0, x1, y1 = answer.boxes[index].tolist()
        low = answer.logits[index]
        out.append(
            {
                "segmentation": mask,
                "area": int(answer.areas[index]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": float(answer.quality[index]),
                "stability_score": float((low > 1).sum() / max((low > -1).sum(), 1)),
                "point_coords": [],
                "crop_box": [0, 0, width, height],
                "name": answer.names[index],
            }
        )
    return out


@dataclasses.dataclass(eq=False)
class VideoState:
    """A video and what was said about it, frame by frame. Made by `SamVideoPredictor.init_state`."""

    path: Path
    said: dict[tuple[int, int], list[dict]] = dataclasses.field(default_factory=dict)


class SamVideoPredictor:
    """`SAM2VideoPredictor`: says what objects are, on any frames, then follows them from the first.

    Frames are read again at each call and never kept, so memory does not grow with the video.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def init_state(self, video_path: str | Path) -> VideoState:
        """The state of a video file or of a folder of frames. ValueError where there is none."""
        read_frames(video_path).close()
        return VideoState(Path(video_path))

    def reset_state(self, inference_state: VideoState) -> None:
        """Forgets all objects."""
        inference_state.said.clear()

    def add_new_points_or_box(
        self,
        inference_state: VideoState,
        frame_idx: int,
        obj_id: int,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> tuple[int, list[int], np.ndarray]:
        """Says more of an object; (frame_idx, object ids, masks bool [N, 1, H, W]) of that frame.

        Coordinates are pixels (x, y). With clear_old_points what was said before of this object on
        this frame is forgotten.
        """
        if not normalize_coords:
            raise ValueError("normalize_coords = False: expected pixels of the frame, so True.")
        asked = {"points": points, "point_labels": labels, "box": box}
        return self._say(inference_state, frame_idx, obj_id, asked, clear_old_points)

    def add_new_mask(
        self, inference_state: VideoState, frame_idx: int, obj_id: int, mask: np.ndarray
    ) -> tuple[int, list[int], np.ndarray]:
        """The object is this mask, bool [H, W], on this frame."""
        return self._say(inference_state, frame_idx, obj_id, {"mask": mask}, True)

    def remove_object(self, inference_state: VideoState, obj_id: int) -> None:
        """Forgets one object, on all frames."""
        mine = [key for key in inference_state.said if key[1] == obj_id]
        if not mine:
            raise ValueError(f"obj_id = {obj_id}: there is no such object.")
        for key in mine:
            del inference_state.said[key]

    def propagate_in_video(
        self,
        inference_state: VideoState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[int], np.ndarray]]:
        """(frame_idx, object ids, masks bool [N, 1, H, W]) of each frame from the first that was said.

        Frames before start_frame_idx are followed but not given out.
        """
        if reverse:
            raise ValueError("reverse = True: frames are followed forwards only.")
        if not inference_state.said:
            raise ValueError("no object: call add_new_points_or_box or add_new_mask first.")
        start = start_frame_idx or 0
        end = None if max_frame_num_to_track is None else start + max_frame_num_to_track
        for number, found in self._followed(inference_state):
            if end is not None and number > end:
                return
            if number >= start:
                yield number, list(found.object_ids), found.masks[:, None]

    def _say(self, state, frame_idx, obj_id, asked, clear) -> tuple[int, list[int], np.ndarray]:
        before = list(state.said.get((frame_idx, obj_id), []))
        state.said[frame_idx, obj_id] = [asked] if clear else [*before, asked]
        try:
            for number, found in self._followed(state):
                if number == frame_idx:
                    return number, list(found.object_ids), found.masks[:, None]
            raise ValueError(f"frame_idx = {frame_idx}: the video has no such frame.")
        except ValueError:
            state.said[frame_idx, obj_id] = before
            if not before:
                del state.said[frame_idx, obj_id]
            raise

    def _followed(self, state: VideoState) -> Iterator[tuple[int, VideoFrame]]:
        tracker = VideoPredictor(self.predictor)
        first = min(frame for frame, _ in state.said)
        with read_frames(state.path) as frames:
            for number, picture in enumerate(frames):
                for (frame, obj_id), asked in state.said.items():
                    for each in asked if frame == number else ():
                        tracker.add(obj_id, **each)
                if number >= first:
                    yield number, tracker.push(picture)
