"""Pure functions of arrays: convolution, resizing, pooling, normalisation."""

from segjax.ops.average_pool import adaptive_avg_pool, avg_pool
from segjax.ops.bilinear_kernel import bilinear_kernel
from segjax.ops.conv import conv
from segjax.ops.conv_matrix import conv_matrix
from segjax.ops.conv_transpose import conv_kernel_gradient, conv_transpose
from segjax.ops.interpolation import interpolation_matrix
from segjax.ops.norm import batch_norm_apply, batch_norm_train
from segjax.ops.pool import max_pool
from segjax.ops.pyramid import adaptive_max_pool, spatial_pyramid_pool
from segjax.ops.resize import resize, resize_padded
from segjax.ops.unpool import bed_of_nails, max_unpool, nearest_unpool

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "batch_norm_apply",
    "batch_norm_train",
    "bed_of_nails",
    "bilinear_kernel",
    "conv",
    "conv_kernel_gradient",
    "conv_matrix",
    "conv_transpose",
    "interpolation_matrix",
    "max_pool",
    "max_unpool",
    "nearest_unpool",
    "resize",
    "resize_padded",
    "spatial_pyramid_pool",
]
