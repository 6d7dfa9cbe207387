"""Config of a data source that is a folder of pictures."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ldm_kit.data.alpha import AlphaConfig
from ldm_kit.data.bucket_sizes import BucketedConfig
from ldm_kit.data.folder_layout import Layout
from ldm_kit.data.image_files import PIXEL_LIMIT, Colour
from ldm_kit.data.metadata import BAD_CAPTION, CAPTION_LINES, BadCaption
from ldm_kit.data.value_range import RangedConfig


class FolderConfig(RangedConfig, BucketedConfig, AlphaConfig):
    """Options of a data source that is a folder of the user's pictures."""

    source: Literal["folder"] = Field(default="folder", description="which data: a folder of pictures")
    path: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        description="the folder: metadata.jsonl (or .csv) with images, one sub-folder per class, or plain images"
    )
    resolution: int = Field(
        default=32, ge=8, le=2048, description="pixels along each side after scaling and centre crop"
    )
    background: Colour = Field(default="white", description="colour laid under transparent pictures: a name or #rrggbb")
    layout: Layout = Field(
        default="auto",
        description="what sub-folders mean. auto: splits (train, val, test), kohya's repeats (10_name) or classes, by "
        "their names; classes: each is a class; repeats: each is one of kohya's; plain: nothing",
    )
    captions: bool = Field(default=True, description="read caption files beside pictures (0.txt beside 0.png)")
    caption_lines: bool = CAPTION_LINES
    on_bad_caption: BadCaption = BAD_CAPTION
    heldout: float = Field(
        default=0.05, ge=0, lt=1, description="share held out, by a hash of names; not used if folders name splits"
    )
    on_bad: Literal["skip", "raise"] = Field(default="skip", description="what an unreadable picture leads to")
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="stop if more than this share is bad; above 0, one bad picture is always allowed",
    )
    pixel_limit: int = Field(
        default=PIXEL_LIMIT, ge=1, le=89_478_485, description="most pixels that an image may have by its header"
    )
    memory_limit: int = Field(
        default=2 * 2**30, ge=0, description="most bytes of a set decoded into memory; larger sets: on demand"
    )
    verify: bool = Field(
        default=True,
        description="sets over memory_limit: decode and hash every picture once at the start; false: check headers "
        "alone, and skip a picture that turns out to be broken in training",
    )
