"""Masks of single things in a surround view's pictures: where their files lie and what their values mean.

Beside ``samples`` a folder ``instances`` holds a grey picture of 16 bits, PNG, for each picture of a key frame:
``instances/CAM_FRONT/x.png`` for ``samples/CAM_FRONT/x.jpg``, of the same size.  A pixel's value is

    1000 (1 + class) + n,   0 on what is no thing of any class,

where class counts nuScenes' ten in the order of ``NUSCENES_CLASSES`` and n tells things of a class apart in one
picture, as Cityscapes numbers them (mcordts/cityscapesScripts, preparation/json2instanceImg.py).  Synthetic drives have
them from their renderer; masks of real ones, and any network's pseudo-labels, can be written so.

Without PyTorch: whoever draws streets does not wait for it.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "instances"
#: Values of a class.
STEP = 1000


def mask_file(root: Path, picture: Path) -> Path:
    """The mask of a picture that lies in ``root/samples/<camera>``."""
    return root / FOLDER / picture.parent.name / f"{picture.stem}.png"
