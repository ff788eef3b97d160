"""COCO's run-length masks: the arithmetic of pycocotools.mask in NumPy, for one mask and for many at a time.

A mask [H, W] is read column by column; its counts are the lengths of its runs, zeros first. As an object of JSON it is
``{"size": [H, W], "counts": ...}`` with a list of counts (uncompressed) or a string of them (compressed, ``strings``).
Many masks are kept as ``Masks``; what loops over masks, runs or corners is array arithmetic there.

Source: P. Dollar and T.-Y. Lin, the COCO API, common/maskApi.c, https://github.com/cocodataset/cocoapi.
"""

from segjax.rle.masks import area as area
from segjax.rle.masks import decode as decode
from segjax.rle.masks import encode as encode
from segjax.rle.masks import from_polygons as from_polygons
from segjax.rle.masks import intersection as intersection
from segjax.rle.masks import iou as iou
from segjax.rle.masks import merge as merge
from segjax.rle.masks import pack as pack
from segjax.rle.masks import to_bbox as to_bbox
from segjax.rle.masks import unpack as unpack
from segjax.rle.runs import Masks as Masks
from segjax.rle.runs import take as take
from segjax.rle.strings import counts_to_string as counts_to_string
from segjax.rle.strings import string_to_counts as string_to_counts
