"""Objects followed through a video, and videos read and written."""

from seem_jax.video.reading import Frames, read_frames
from seem_jax.video.tracking import VideoFrame, VideoPredictor
from seem_jax.video.writing import VideoWriter, save_davis, write_davis, write_video

__all__ = [
    "Frames",
    "VideoFrame",
    "VideoPredictor",
    "VideoWriter",
    "read_frames",
    "save_davis",
    "write_davis",
    "write_video",
]
