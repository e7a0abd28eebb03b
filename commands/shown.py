"""`--image` and `--video`: what a prompt shows, in the order it was typed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from vlm_trt.commands.group import SHOWN_ORDER
from vlm_trt.families.clips import Video
from vlm_trt.families.images import decode_image, read_picture
from vlm_trt.families.messages import AS_IT_IS, Image, Look
from vlm_trt.families.videos import read_video, require_decodable


def read_shown(images: Sequence[Path], videos: Sequence[Path], look: Look) -> list[Image | Video]:
    """Pictures and videos in the order they were typed in.

    Args:
        images: the pictures' files.
        videos: the videos' files.
        look: how the pictures are looked at.
    Raises:
        ImageError, VideoError: a file cannot be read, or holds none.
    """
    pictures: Iterator[Image | Video] = iter(read_images(images, look))
    clips: Iterator[Image | Video] = iter(read_videos(videos))
    context = click.get_current_context(silent=True)
    order = [] if context is None else context.meta.get(SHOWN_ORDER, [])
    if (order.count("--image"), order.count("--video")) != (len(images), len(videos)):
        return [*pictures, *clips]  # one of the words was another option's value
    return [next(pictures if name == "--image" else clips) for name in order]


def read_images(paths: Sequence[Path], look: Look = AS_IT_IS) -> list[Image]:
    """The pictures of those files, decoded once to see that they can be: loading a bundle may take much longer.

    Args:
        paths: of the files.
        look: how they are looked at.
    Raises:
        ImageError: a file cannot be read, or holds no picture.
    """
    images = []
    for path in paths:
        data = read_picture(path)
        decode_image(data, str(path))
        images.append(Image(data, path.name, look.detail, look.min_pixels, look.max_pixels))
    return images


def read_videos(paths: Sequence[Path]) -> list[Video]:
    """The videos of those files, not yet decoded: which of their frames are looked at is the model's to say.

    Raises:
        VideoError: a file cannot be read, or is no video by its beginning.
    """
    videos = []
    for path in paths:
        videos.append(Video(read_video(path), str(path)))
        require_decodable(videos[-1])
    return videos
