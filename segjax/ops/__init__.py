"""Pure functions of arrays: convolution, resizing, pooling, normalisation, boxes and regions."""

from segjax.ops.average_pool import adaptive_avg_pool, avg_pool
from segjax.ops.bilinear_kernel import bilinear_kernel
from segjax.ops.boxes import anchors, box_area, box_iou, clip_boxes, decode_boxes, encode_boxes
from segjax.ops.conv import conv
from segjax.ops.conv_matrix import conv_matrix
from segjax.ops.conv_transpose import conv_kernel_gradient, conv_transpose
from segjax.ops.instance_masks import crop_mask_targets, mask_targets, paste_masks
from segjax.ops.interpolation import interpolation_matrix
from segjax.ops.matching import covered, match, match_boxes, sample_balanced
from segjax.ops.nms import batched_nms, nms
from segjax.ops.norm import batch_norm_apply, batch_norm_train
from segjax.ops.pool import max_pool
from segjax.ops.pyramid import adaptive_max_pool, spatial_pyramid_pool
from segjax.ops.resize import resize, resize_padded
from segjax.ops.roi import roi_align
from segjax.ops.roi_levels import roi_align_levels
from segjax.ops.roi_pool import roi_pool
from segjax.ops.unpool import bed_of_nails, max_unpool, nearest_unpool

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "anchors",
    "avg_pool",
    "batch_norm_apply",
    "batch_norm_train",
    "batched_nms",
    "bed_of_nails",
    "bilinear_kernel",
    "box_area",
    "box_iou",
    "clip_boxes",
    "conv",
    "conv_kernel_gradient",
    "conv_matrix",
    "conv_transpose",
    "covered",
    "crop_mask_targets",
    "decode_boxes",
    "encode_boxes",
    "interpolation_matrix",
    "mask_targets",
    "match",
    "match_boxes",
    "max_pool",
    "max_unpool",
    "nearest_unpool",
    "nms",
    "paste_masks",
    "resize",
    "resize_padded",
    "roi_align",
    "roi_align_levels",
    "roi_pool",
    "sample_balanced",
    "spatial_pyramid_pool",
]
